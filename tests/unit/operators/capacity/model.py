"""A Karpenter and an EC2 small enough to run a climb in no time: everything happens by a clock that only tests move.

What they do is what the sandbox does (``sandbox/karpenter``), reduced to one pool: a placeholder without a node gets a
NodeClaim with its requirements, EC2 answers after two seconds, spot before on-demand, a refused offering is left alone
for three minutes, a node joins 90 seconds after its launch. Nothing is planned while a NodeClaim waits for EC2.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.capacity.ladder import is_launched, requirements, steps
from gpu_fleet.core.errors import Conflict
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, Kind, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_RUNG, LABEL_INITIALIZED, SYSTEM_NAMESPACE
from gpu_fleet.core.manifests.build import pool_labels, pool_taints
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.operators import base
from gpu_fleet.operators.capacity import climbing, prove, request, rungs
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.triggers import looking, waiting
from tests.unit.airflow_context import StateStore, TaskInstance, context
from tests.unit.core.cluster_objects import NOW, node, stamp
from tests.unit.core.specs import demo_spec

Json = dict[str, Any]
POOL = "shared-a10g"
TYPES = ["g5.xlarge", "g5.2xlarge", "g6.xlarge"]
ZONES = ["us-west-2a", "us-west-2b", "us-west-2c"]
TYPE, ZONE, CAPACITY = "node.kubernetes.io/instance-type", "topology.kubernetes.io/zone", "karpenter.sh/capacity-type"
ANSWER_S, JOIN_S, MEMORY_S = 2, 90, 180
REFUSED = "creating instance, insufficient capacity, with fleet error(s), {}: no {} in {}"
NO_OFFERING = "Failed to schedule pod, no instance type has the required offering, requirements=…"
#: instance type, zone, capacity type, simulated seconds since the beginning -> EC2's error code.
Sky = Callable[[str, str, str, float], str | None]


class Killed(BaseException):
    """The process of the task is gone."""


def ladder_spec(ladder: list[Json], wanted: int = 1, minimum: int | None = None) -> ClusterSpec:
    return demo_spec(
        nodePools__0__instanceTypes=TYPES,
        nodePools__0__wantedNodes=wanted,
        nodePools__0__limits={"nodes": wanted},
        nodePools__0__capacity={"ladder": ladder, "minimum": minimum},
        deadlines__capacity="30m",
    )


class World:
    """
    :ivar most: the most instances at a time.
    :ivar clashes: NodeClaims without an answer that were not all of one rung.
    :ivar dies_at: the number of the call to the API server at which the task is killed.
    """

    def __init__(self, spec: ClusterSpec, sky: Sky) -> None:
        self.spec, self.sky, self.now = spec, sky, NOW
        self.pool = spec.pool(POOL)
        self.pods: dict[str, Json] = {}
        self.claims: dict[str, Json] = {}
        self.nodes: dict[str, Json] = {}
        self.events: list[Json] = []
        self.memory: dict[tuple[str, str, str], float] = {}
        self.born: dict[str, float] = {}
        self.most, self.calls, self.dies_at = 0, 0, 0
        self.clashes: list[list[str]] = []
        self._numbers = itertools.count(1)

    # --- the API server ------------------------------------------------------------------------------------------
    def _called(self) -> None:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed

    def list(self, kind: Kind, namespace: str | None = None, **selectors: Any) -> list[Json]:
        self._called()
        if kind is POD:
            wanted = str(selectors.get("label_selector"))
            return copy.deepcopy(list(self.pods.values())) if "component=placeholder" in wanted else []
        if kind is NODE_CLAIM:
            return copy.deepcopy(list(self.claims.values()))
        if kind is NODE:
            return copy.deepcopy(list(self.nodes.values()))
        if kind.kind == "Event":
            about = "Pod" if namespace == SYSTEM_NAMESPACE else "NodeClaim"
            return [each for each in self.events if each["involvedObject"]["kind"] == about]
        return []

    def get(self, ref: ObjectRef) -> Json | None:
        return {"metadata": {"name": ref.name}}

    def create(self, manifest: Json) -> Json:
        self._called()
        pod = copy.deepcopy(manifest)
        number = next(self._numbers)
        pod["metadata"] |= {"uid": f"pod-{number}", "creationTimestamp": stamp(self.now)}
        pod["status"] = {"phase": "Pending"}
        assert pod["metadata"]["name"] not in self.pods
        self.pods[pod["metadata"]["name"]] = pod
        return pod

    def delete(self, ref: ObjectRef, *, version: str | None = None, uid: str | None = None, **_: Any) -> bool:
        self._called()
        found = {POD: self.pods, NODE_CLAIM: self.claims}[ref.kind]
        if ref.name not in found:
            return False
        if version is not None and found[ref.name]["metadata"]["resourceVersion"] != version:
            raise Conflict("changed")
        del found[ref.name]
        return True

    def patch(self, ref: ObjectRef, change: Json, **_: Any) -> None:
        for key in ("labels", "annotations"):
            self.nodes[ref.name]["metadata"].setdefault(key, {}).update((change.get("metadata") or {}).get(key) or {})

    def apply(self, *_: Any, **__: Any) -> None:
        return None

    def clock(self) -> float:
        return self.now

    # --- Karpenter and EC2 ---------------------------------------------------------------------------------------
    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0)
            self._step()

    def _step(self) -> None:
        for name in list(self.claims):
            claim, age = self.claims[name], self.now - self.born[name]
            if not is_launched(claim) and age >= ANSWER_S:
                self._answer(name, claim)
            elif is_launched(claim) and age >= JOIN_S and name not in self.nodes:
                self._join(name, claim)
        self._bind()
        undecided = [claim for claim in self.claims.values() if not is_launched(claim)]
        ladder = steps(self.pool)
        if undecided and not any(all(step.made(claim) for claim in undecided) for step in ladder):
            self.clashes.append(sorted(self.claims))
        if not undecided:
            self._plan()
        self.most = max(self.most, sum(map(is_launched, self.claims.values())))

    def _offerings(self, asked: dict[str, list[str]]) -> list[tuple[str, str, str]]:
        every = itertools.product(asked.get(TYPE, TYPES), asked.get(ZONE, ZONES), asked.get(CAPACITY, []))
        return [each for each in every if self.memory.get(each, 0.0) <= self.now]

    def _plan(self) -> None:
        served = {claim["for"] for claim in self.claims.values()}
        for pod in list(self.pods.values()):
            if pod["spec"].get("nodeName") or pod["metadata"]["uid"] in served:
                continue
            affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            entries = affinity["nodeSelectorTerms"][0]["matchExpressions"]
            asked = {entry["key"]: entry["values"] for entry in entries if entry["operator"] == "In"}
            if not self._offerings(asked):
                self._tell("Pod", pod["metadata"]["uid"], pod["metadata"]["name"], "FailedScheduling", NO_OFFERING)
                continue
            # The API server's names: five letters or digits.
            name = f"{POOL}-{next(self._numbers):05d}"
            self.born[name] = self.now
            self.claims[name] = {
                "for": pod["metadata"]["uid"],
                "metadata": {
                    "name": name,
                    "uid": f"uid-{name}",
                    "resourceVersion": "1",
                    "creationTimestamp": stamp(self.now),
                    "labels": {"karpenter.sh/nodepool": POOL, **pool_labels(self.pool)},
                },
                "spec": {"requirements": copy.deepcopy(entries), "taints": pool_taints(self.pool)},
                "status": {"conditions": [self._condition("Launched", "Unknown")]},
            }

    def _condition(self, kind: str, status: str) -> Json:
        reason = kind if status == "True" else "AwaitingReconciliation"
        return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": stamp(self.now)}

    def _answer(self, name: str, claim: Json) -> None:
        offerings = self._offerings(requirements(claim))
        kind = "spot" if any(each[2] == "spot" for each in offerings) else "on-demand"
        said = []
        for offering in sorted(each for each in offerings if each[2] == kind):
            code = self.sky(*offering, self.now - NOW)
            if code is None:
                claim["metadata"]["labels"] |= dict(zip((TYPE, ZONE, CAPACITY), offering, strict=True))
                claim["metadata"]["resourceVersion"] = "2"
                claim["status"]["conditions"] = [self._condition("Launched", "True")]
                return
            self.memory[offering] = self.now + MEMORY_S
            said.append(REFUSED.format(code, offering[0], offering[1]))
        del self.claims[name]
        self._tell("NodeClaim", f"uid-{name}", name, "InsufficientCapacityError", "; ".join(said)[:300])

    def _join(self, name: str, claim: Json) -> None:
        there = node(name)
        there["metadata"]["labels"] |= {**claim["metadata"]["labels"], LABEL_INITIALIZED: "true"}
        self.nodes[name] = there
        claim["status"] |= {"nodeName": name}
        claim["status"]["conditions"] = [self._condition(k, "True") for k in ("Launched", "Registered", "Initialized")]

    def _bind(self) -> None:
        taken = {pod["spec"].get("nodeName") for pod in self.pods.values()}
        for name, there in self.nodes.items():
            labels = there["metadata"]["labels"]
            if name in taken or labels.get("gpu-fleet.io/standing"):
                continue
            step = next(
                (
                    (pod, step)
                    for pod in self.pods.values()
                    for step in steps(self.pool)
                    if not pod["spec"].get("nodeName")
                    and pod["metadata"]["annotations"].get(ANNOTATION_RUNG) == step.digest
                    and step.admits(labels)
                ),
                None,
            )
            if step is not None:
                step[0]["spec"]["nodeName"] = name
                step[0]["status"]["phase"] = "Running"

    def _tell(self, kind: str, uid: str, name: str, reason: str, message: str) -> None:
        same = [each for each in self.events if each["involvedObject"]["uid"] == uid and each["reason"] == reason]
        if same and self.now - same[-1]["at"] < 300:  # Karpenter's recorder tells the same only every five minutes
            return
        self.events.append(
            {
                "at": self.now,
                "metadata": {"uid": f"event-{next(self._numbers)}"},
                "involvedObject": {"kind": kind, "uid": uid, "name": name},
                "reason": reason,
                "message": message,
                "source": {"component": "karpenter"},
                "lastTimestamp": stamp(self.now),
            }
        )


class Run:
    """One run of the two tasks in a world; a killed try is followed by another with the same state."""

    def __init__(self, world: World) -> None:
        self.world, self.ti = world, TaskInstance(spec=world.spec)
        self.stores = {"request": StateStore(), "await": StateStore()}
        with DAG("gpu_lifecycle.demo", schedule=None):
            self.request = RequestCapacityOperator(task_id="request", node_pool=POOL)
            self.wait = AwaitCapacityOperator(task_id="await", node_pool=POOL)
            self.request >> self.wait

    def __call__(self) -> Json:
        self._try(self.request)
        return self._try(self.wait)

    @property
    def told(self) -> Json:
        return dict(self.ti.xcoms["ladder"])

    def _try(self, operator: Any) -> Json:
        self.ti.try_number = 1
        while True:
            try:
                return self._once(operator)
            except Killed:
                self.world.sleep(5)  # until the scheduler starts it again
                self.ti.try_number += 1
                self.ti.xcoms.pop("ladder", None)

    def _once(self, operator: Any) -> Json:
        self.ti.task_id = operator.task_id  # type: ignore[attr-defined]
        where = context(self.ti) | {"task_state_store": self.stores[operator.task_id]}
        work = lambda: operator.execute(where)  # noqa: E731 - the next step of the task
        while True:
            try:
                return dict(work())
            except TaskDeferred as deferred:
                event = self._seen(deferred.trigger.serialize()[1])
                method, kwargs = getattr(operator, deferred.method_name), deferred.kwargs or {}
                work = lambda m=method, e=event, k=kwargs: m(where, event=e, **k)  # noqa: E731

    def _seen(self, waits: Json) -> Json:
        began = self.world.now
        while True:
            verdict = looking.look(waits["gate"], waits["args"], None, started=began)  # type: ignore[arg-type]
            if verdict.ready or verdict.failed:
                return {"type": "verdict", "gate": waits["gate"], "verdict": verdict.to_json()}
            if self.world.now >= waits["deadline"]:
                return {"type": "deadline", "gate": waits["gate"], "verdict": verdict.to_json()}
            self.world.sleep(1)


@contextmanager
def in_the(world: World) -> Iterator[None]:
    """The package's operators, in that world and by its clock."""
    ticking = SimpleNamespace(time=world.clock, monotonic=world.clock, sleep=world.sleep)
    kube = SimpleNamespace(
        list=world.list, get=world.get, create=world.create, delete=world.delete, patch=world.patch, apply=world.apply,
        now=world.clock,
    )  # fmt: skip

    def prepare(operator: Any, _: Any) -> None:
        operator.spec, operator.kube = world.spec, kube

    with pytest.MonkeyPatch.context() as given, patch("gpu_fleet.hooks.cluster.drifted.remember_class"):
        for module in (base, looking, waiting, climbing, rungs):
            given.setattr(module, "time", ticking, raising=False)
        given.setattr(base.FleetOperator, "prepare", prepare)
        given.setattr(base.FleetOperator, "access", lambda _: SimpleNamespace(to_json=dict))
        given.setattr(looking, "_list", lambda _, query: world.list(
            query.kind, query.namespace, label_selector=query.label_selector
        ))  # fmt: skip
        given.setattr(looking, "clock_ahead", lambda _: 0.0)
        given.setattr(waiting, "clock_ahead", lambda _: 0.0)
        for user in (prove, request):
            given.setattr(user, "hardware", lambda *_: SimpleNamespace(count=1))
            given.setattr(user, "ensure_objects", lambda *_: None, raising=False)
        yield
