"""A pool with a ladder in the whole sandbox, in this process: its weather, and runs that ask for capacity."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from airflow.sdk import DAG

from gpu_fleet.core.capacity.ladder import is_launched, steps
from gpu_fleet.core.gates.capacity import rung
from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.capacity import rungs
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from sandbox.faults import FaultBoard
from tests.e2e.helm_world import helm_binary
from tests.unit.airflow_context import StateStore, TaskInstance
from tests.unit.operators.whole_fleet import fleet, pool_of, provide, run, until
from tests.unit.sandboxed import whole_sandbox

POOL = "ladder"
SPEED = 60.0
TYPES = ["g5.xlarge", "g5.2xlarge", "g6.xlarge"]
POOL_TAG = "karpenter.sh/nodepool"


def ladder_fleet(ladder: list[dict[str, Any]], wanted: int = 1, cap: int | None = None, **capacity: Any) -> ClusterSpec:
    pool = pool_of(
        POOL,
        {"mode": "exclusive"},
        instanceTypes=TYPES,
        capacityTypes=["spot", "on-demand"],
        wantedNodes=wanted,
        limits={"nodes": wanted if cap is None else cap},
        capacity={"ladder": ladder, **capacity},
    )
    return fleet(pool)


def quick(patch: pytest.MonkeyPatch) -> None:
    """The times of Karpenter and EC2 that the package knows, as the sandbox has them."""
    patch.setattr(rung, "AGAIN_S", rung.AGAIN_S / SPEED)
    patch.setattr(rung, "QUIET_S", 2.0)
    patch.setattr(rungs, "ANSWERED_S", 3.0)
    patch.setattr(rungs, "PASS_S", 0.5)


@dataclass
class Sky:
    """
    :ivar most: the most instances of the pool that were seen at a time.
    :ivar clashes: NodeClaims without an instance that were not all of one rung.
    """

    kube: KubeClient
    faults: FaultBoard
    ec2: Any
    most: int = 0
    provided: set[str] = field(default_factory=set)
    clashes: list[list[str]] = field(default_factory=list)
    ladder: tuple[Any, ...] = ()
    over: threading.Event = field(default_factory=threading.Event)

    def weather(self, *spells: dict[str, Any]) -> None:
        self.faults.set("weather", {"spells": list(spells)})

    def provide(self, spec: ClusterSpec) -> None:
        """Once for each spec: helm takes seconds."""
        key = json.dumps(spec.to_json()["nodePools"][0] | {"capacity": None}, sort_keys=True)
        if key not in self.provided:
            provide(self.kube, spec)
            self.provided.add(key)
        self.most = 0

    def watches(self, spec: ClusterSpec) -> None:
        """From now on it looks that never two rungs of this ladder buy at once."""
        self.ladder, self.clashes = steps(spec.node_pools[0]), []

    def instances(self, *states: str) -> list[dict[str, Any]]:
        filters = [
            {"Name": f"tag:{POOL_TAG}", "Values": [POOL]},
            {"Name": "instance-state-name", "Values": list(states or ("pending", "running"))},
        ]
        pages = self.ec2.get_paginator("describe_instances").paginate(Filters=filters)
        return [each for page in pages for group in page["Reservations"] for each in group["Instances"]]

    def watch(self) -> None:
        while not self.over.wait(0.5):
            self.most = max(self.most, len(self.instances()))
            buying = [claim for claim in self.claims() if not is_launched(claim) and not deleting(claim)]
            if buying and self.ladder and not any(all(step.made(claim) for claim in buying) for step in self.ladder):
                self.clashes.append([claim["metadata"]["name"] for claim in buying])

    def placeholders(self) -> list[dict[str, Any]]:
        return self.kube.list(POD, SYSTEM_NAMESPACE)

    def claims(self) -> list[dict[str, Any]]:
        return self.kube.list(NODE_CLAIM, label_selector=f"{POOL_TAG}={POOL}")

    def clear(self) -> None:
        """No weather, nothing asked for, nothing bought."""
        self.faults.clear()
        for pod in self.placeholders():
            self.kube.delete(ObjectRef(POD, pod["metadata"]["name"], SYSTEM_NAMESPACE), grace_seconds=0)

        def gone() -> bool:
            for claim in self.claims():
                self.kube.delete(ObjectRef(NODE_CLAIM, claim["metadata"]["name"]))
            return not self.claims() and not self.instances("pending", "running", "shutting-down")

        until("an empty pool", gone)
        time.sleep(rung.AGAIN_S / SPEED if rung.AGAIN_S > 100 else rung.AGAIN_S)  # Karpenter forgets what was refused


@contextmanager
def sky(folder: Path) -> Iterator[Sky]:
    from tests.unit import sandboxed

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELM_BIN", helm_binary())
        patch.setenv("GPU_FLEET_CHART_CACHE", str(folder / "charts"))
        faults = FaultBoard()
        made = sandboxed.Settings
        patch.setattr(sandboxed, "Settings", lambda **given: made(**given, faults=faults))
        with whole_sandbox(folder / "sandbox", speed=SPEED) as environment:
            for name, value in environment.items():
                patch.setenv(name, value)
            ec2 = boto3.client(
                "ec2",
                endpoint_url=environment["AWS_ENDPOINT_URL"],
                region_name=environment["AWS_DEFAULT_REGION"],
                aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            )
            kube = KubernetesHook(ClusterAccess.from_spec(ladder_fleet([]))).client()
            found = Sky(kube, faults, ec2)
            watcher = threading.Thread(target=found.watch, daemon=True)
            watcher.start()
            try:
                yield found
            finally:
                found.over.set()
                watcher.join()
                ec2.close()


class Ascent:
    """One run: it asks for capacity and waits for it."""

    def __init__(self, spec: ClusterSpec, run_id: str = "manual__1") -> None:
        self.spec = spec
        self.ti = TaskInstance(spec=spec, run_id=run_id)
        self.request_store, self.store = StateStore(), StateStore()
        with DAG("gpu_lifecycle.demo", schedule=None):
            self.request = RequestCapacityOperator(task_id="request", node_pool=POOL)
            self.wait = AwaitCapacityOperator(task_id="await", node_pool=POOL)
            self.request >> self.wait

    def ask(self) -> Any:
        return run(self.request, self.spec, self.ti, self.request_store)

    def come(self) -> dict[str, Any]:
        return run(self.wait, self.spec, self.ti, self.store)  # type: ignore[no-any-return]

    def __call__(self) -> dict[str, Any]:
        self.ask()
        return self.come()

    def clean_up(self) -> Any:
        return run(CleanUpValidationOperator(task_id="clean_up", node_pool=POOL), self.spec, self.ti)

    @property
    def told(self) -> dict[str, Any]:
        return dict(self.ti.xcoms["ladder"])
