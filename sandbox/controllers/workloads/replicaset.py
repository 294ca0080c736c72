"""The ReplicaSet controller. Source: kubernetes/kubernetes ``pkg/controller/replicaset/replica_set.go``."""

from __future__ import annotations

from typing import Any

from sandbox.controllers.matching import selects
from sandbox.controllers.objects import (
    Object,
    is_deleting,
    is_finished,
    is_ready,
    meta,
    phase,
    pod_from,
    ready_for,
    with_condition,
)
from sandbox.controllers.workloads.podcontrol import PodOwner
from sandbox.kube.resources import ApiError


class ReplicaSetController(PodOwner):
    """Keys are ReplicaSets."""

    name = "replicaset-controller"
    kind = "ReplicaSet"
    workers = 4

    async def reconcile(self, key: tuple[str, str]) -> None:
        replicaset = self.live_owner(key)
        if replicaset is None:
            return
        wanted = replicaset["spec"].get("replicas", 1)
        live = self._live(replicaset)
        failure: ApiError | None = None
        if len(live) < wanted:
            template = replicaset["spec"]["template"]
            failure = await self.create_pods(
                replicaset, [pod_from(template, replicaset) for _ in range(wanted - len(live))]
            )
        elif len(live) > wanted:
            await self.delete_pods(replicaset, sorted(live, key=deletion_rank)[: len(live) - wanted])
        await self._update_status(replicaset, failure)
        if failure is not None:
            raise failure

    def _live(self, replicaset: Object) -> list[Object]:
        return [pod for pod in self.pods_of(replicaset) if not is_deleting(pod) and not is_finished(pod)]

    async def _update_status(self, replicaset: Object, failure: ApiError | None) -> None:
        minimum = self.clock.real(replicaset["spec"].get("minReadySeconds") or 0)
        labels = (replicaset["spec"]["template"].get("metadata") or {}).get("labels") or {}
        live = self._live(replicaset)
        available = 0
        for pod in live:
            ready = ready_for(pod)
            if ready >= minimum:
                available += 1
            elif ready >= 0:
                self.queue.add_after((meta(pod)["namespace"], meta(replicaset)["name"]), minimum - ready + 0.05)
        counts = {
            "fullyLabeledReplicas": sum(selects({"matchLabels": labels}, meta(pod).get("labels")) for pod in live),
            "readyReplicas": sum(is_ready(pod) for pod in live),
            "availableReplicas": available,
        }
        status: dict[str, Any] = {"replicas": len(live), "observedGeneration": meta(replicaset)["generation"]}
        status |= {name: count for name, count in counts.items() if count}
        others = [
            each
            for each in (replicaset.get("status") or {}).get("conditions") or []
            if each["type"] != "ReplicaFailure" or failure is not None
        ]
        if failure is not None:
            new = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure.message}
            others = with_condition(others, new)
        if others:
            status["conditions"] = others
        await self.write_status(replicaset, status)


def deletion_rank(pod: Object) -> tuple[Any, ...]:
    """Which pod is deleted first: unassigned, then Pending, then not ready, then the one that is ready the shortest."""
    return (
        bool(pod["spec"].get("nodeName")),
        {"Pending": 0, "Unknown": 1}.get(phase(pod), 2),
        is_ready(pod),
        ready_for(pod),
        -int(meta(pod)["resourceVersion"]),
    )
