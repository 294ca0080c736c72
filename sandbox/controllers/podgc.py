"""PodGC: removes pods that no kubelet will ever remove.

Source: kubernetes/kubernetes ``pkg/controller/podgc/gc_controller.go``: pods bound to a node that has not existed
for 40 s, deleted pods that were never bound, and deleted pods on a node that is not ready and tainted out-of-service.
"""

from __future__ import annotations

import asyncio

from sandbox.controllers.base import Context, Controller
from sandbox.controllers.objects import Object, is_deleting, is_finished, is_ready, meta
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now

#: Simulated seconds that a node must be missing before its pods are removed.
QUARANTINE = 40.0
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


class PodCollector(Controller):
    """Keys are pods."""

    name = "pod-garbage-collector"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._missing_since: dict[tuple[str, str], float] = {}

    def wire(self) -> None:
        self.pods = self.watch("Pod", self._pod_changed)
        self.pods.add_index("node", _node_of)
        self.nodes = self.watch("Node", self._node_changed)

    def _pod_changed(self, change: Change, new: Object, _old: Object | None) -> None:
        node = new["spec"].get("nodeName")
        missing = not node or self.context.informers("Node").get(node) is None
        if change != "DELETED" and (is_deleting(new) or (node and missing)):
            self.queue.add((meta(new)["namespace"], meta(new)["name"]))

    def _node_changed(self, change: Change, new: Object, _old: Object | None) -> None:
        if change != "DELETED" and not _is_out_of_service(new):
            return
        pods = self.context.informers("Pod")
        pods.add_index("node", _node_of)
        for pod in pods.by_index("node", meta(new)["name"]):
            self.queue.add((meta(pod)["namespace"], meta(pod)["name"]))

    async def reconcile(self, key: tuple[str, str]) -> None:
        pod = self.pods.get(key[1], key[0])
        if pod is None:
            return
        place = pod["spec"].get("nodeName")
        if not place:
            if is_deleting(pod):
                await self._remove(pod)
            return
        node = self.nodes.get(place)
        if node is not None:
            self._missing_since.pop(key, None)
            if is_deleting(pod) and _is_out_of_service(node):
                await self._remove(pod)
            return
        left = self._quarantine_left(key)
        if left > 0:
            self.queue.add_after(key, left)
            return
        if await self.kube.find("Node", place) is None:
            await self._remove(pod, "PodGC: node no longer exists")

    def _quarantine_left(self, key: tuple[str, str]) -> float:
        """Real seconds of quarantine that are left for a pod's node; the first call starts it."""
        clock = asyncio.get_running_loop().time()
        left = self._missing_since.setdefault(key, clock) + self.clock.real(QUARANTINE) - clock
        if left <= 0:
            del self._missing_since[key]
        return left

    async def _remove(self, pod: Object, why: str | None = None) -> None:
        name, namespace = meta(pod)["name"], meta(pod)["namespace"]
        if why is not None and not is_finished(pod):
            disruption = {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": why,
                "lastTransitionTime": now(),
            }
            body = {"status": {"phase": "Failed", "conditions": [disruption]}}
            try:
                await self.kube.patch("Pod", name, body, namespace, type="strategic", subresource="status")
            except ApiError as error:
                if not error.not_found:
                    raise
        await self.kube.delete("Pod", name, namespace, uid=meta(pod)["uid"], grace_seconds=0)


def _node_of(pod: Object) -> tuple[str, ...]:
    return (pod["spec"]["nodeName"],) if pod["spec"].get("nodeName") else ()


def _is_out_of_service(node: Object) -> bool:
    taints = (node.get("spec") or {}).get("taints") or []
    return not is_ready(node) and any(taint["key"] == OUT_OF_SERVICE for taint in taints)
