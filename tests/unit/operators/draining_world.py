"""Nodes, pods and budgets on the sandbox's API server, and a stand-in for their kubelets, for tests of drains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gpu_fleet.core.drain.actions import Limits
from gpu_fleet.core.drain.drained import Drained, Target
from gpu_fleet.core.drain.records import PodRecord
from gpu_fleet.core.drain.rules import DrainRules
from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import NODE, POD, POD_DISRUPTION_BUDGET, ObjectRef
from gpu_fleet.core.spec.operations import Drain
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.draining.drain import drain_nodes
from tests.unit.sandboxed import SandboxCluster

NAMESPACE = "default"


class World:
    """What is on the API server."""

    def __init__(self, cluster: SandboxCluster) -> None:
        self.cluster, self.kube = cluster, cluster.kube

    def node(self, name: str) -> str:
        self.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        return name

    def pod(
        self,
        name: str,
        node: str = "n1",
        *,
        owner: str | None = "ReplicaSet",
        grace: int = 1,
        volumes: list[dict[str, Any]] | None = None,
        **metadata: Any,
    ) -> str:
        """A running, ready pod; returns its UID."""
        if owner is not None:
            metadata["ownerReferences"] = [
                {"apiVersion": "apps/v1", "kind": owner, "name": "web", "uid": "u-web", "controller": True}
            ]
        created = self.kube.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "web"}, **metadata},
                "spec": {
                    "nodeName": node,
                    "containers": [{"name": "c", "image": "x"}],
                    "terminationGracePeriodSeconds": grace,
                    "volumes": volumes or [],
                },
            }
        )
        status = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [_container("running")],
        }
        self.kube.patch(ObjectRef(POD, name, NAMESPACE), {"status": status}, subresource="status")
        return str(created["metadata"]["uid"])

    def budget(self, allowed: int, name: str = "web-pdb", observed: int | None = None) -> None:
        """A budget for all pods.

        :param observed: generation that its controller has seen; by default the present one.
        """
        created = self.kube.create(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
            }
        )
        self.allow(allowed, name, created["metadata"].get("generation", 1) if observed is None else observed)

    def allow(self, allowed: int, name: str = "web-pdb", observed: int = 1) -> None:
        status = {
            "observedGeneration": observed,
            "disruptionsAllowed": allowed,
            "currentHealthy": 1,
            "desiredHealthy": 1,
            "expectedPods": 1,
        }
        ref = ObjectRef(POD_DISRUPTION_BUDGET, name, NAMESPACE)
        self.kube.patch(ref, {"status": status}, subresource="status")

    def get(self, name: str) -> dict[str, Any] | None:
        return self.kube.get(ObjectRef(POD, name, NAMESPACE))

    def end(self, name: str) -> None:
        """What a kubelet does in the end."""
        self.kube.delete(ObjectRef(POD, name, NAMESPACE), grace_seconds=0)

    def clear(self) -> None:
        self.cluster.faults.clear()
        for item in self.kube.list(POD):
            if item["metadata"].get("finalizers"):
                self.kube.patch(ObjectRef(POD, item["metadata"]["name"], NAMESPACE), {"metadata": {"finalizers": None}})
            self.end(item["metadata"]["name"])
        for kind in (POD_DISRUPTION_BUDGET, NODE):
            for item in self.kube.list(kind):
                self.kube.delete(ObjectRef(kind, item["metadata"]["name"], item["metadata"].get("namespace")))

    @contextmanager
    def kubelets(
        self, *, takes: float = 0.0, ends: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> Iterator[None]:
        """Terminating pods end by themselves.

        :param takes: seconds after their deletion was seen.
        :param ends: which of them; all by default.
        """
        stop = threading.Event()
        seen: dict[str, float] = {}

        def work() -> None:
            kube = KubeClient(self.cluster.access)
            while not stop.wait(0.05):
                for pod in _pods(kube):
                    metadata = pod["metadata"]
                    if metadata.get("deletionTimestamp") and (ends is None or ends(pod)):
                        first = seen.setdefault(metadata["uid"], time.monotonic())
                        if time.monotonic() - first >= takes:
                            _terminate(kube, pod)
            kube.close()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def drain(
        self,
        *nodes: str,
        seconds: float | None = 20.0,
        margin: float = 1.0,
        limits: Limits | None = None,
        rules: DrainRules | None = None,
        policy: dict[str, Any] | None = None,
        **options: Any,
    ) -> Drained:
        """Drain nodes that end in so many seconds."""
        now = self.kube.now()
        limits = limits or Limits(deadline=None if seconds is None else now + seconds, margin=margin)
        targets = [Target(node, limits) for node in nodes or ("n1",)]
        return drain_nodes(
            self.kube, targets, rules=rules or DrainRules(), policy=Drain.model_validate(policy or {}), **options
        )


def by_name(drained: Drained) -> dict[str, PodRecord]:
    return {record.name: record for record in drained.records}


def outcomes(drained: Drained) -> dict[str, str]:
    return {record.name: record.outcome.value for record in drained.records}


def _pods(kube: KubeClient) -> list[dict[str, Any]]:
    try:
        return kube.list(POD)
    except GpuFleetError:
        return []


def _container(state: str) -> dict[str, Any]:
    return {
        "name": "c",
        "image": "x",
        "imageID": "x",
        "ready": False,
        "restartCount": 0,
        "state": {state: {"exitCode": 0} if state == "terminated" else {}},
    }


def _terminate(kube: KubeClient, pod: Mapping[str, Any]) -> None:
    ref = ObjectRef(POD, pod["metadata"]["name"], pod["metadata"]["namespace"])
    try:
        kube.patch(ref, {"status": {"containerStatuses": [_container("terminated")]}}, subresource="status")
        kube.delete(ref, grace_seconds=0, uid=pod["metadata"]["uid"])
    except GpuFleetError:
        return
