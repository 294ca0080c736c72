"""The taint eviction controller: deletes pods that do not tolerate a NoExecute taint (any more).

Source: kubernetes/kubernetes ``pkg/controller/tainteviction/taint_eviction.go``. ``tolerationSeconds`` are
simulated seconds.
"""

from __future__ import annotations

import asyncio

from sandbox.controllers.base import Context, Controller
from sandbox.controllers.matching import tolerates
from sandbox.controllers.nodelifecycle import node_of
from sandbox.controllers.objects import Object, is_deleting, meta
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now


class TaintEvictionController(Controller):
    """Keys are pods."""

    name = "taint-eviction-controller"
    workers = 4

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: When a pod was first seen beside NoExecute taints, by its uid (event loop time).
        self._since: dict[str, float] = {}

    def wire(self) -> None:
        self.pods = self.watch("Pod", self._pod_changed)
        self.pods.add_index("node", node_of)
        self.nodes = self.watch("Node", self._node_changed)

    def _pod_changed(self, change: Change, new: Object, old: Object | None) -> None:
        if change == "DELETED":
            self._since.pop(meta(new)["uid"], None)
        elif new["spec"].get("nodeName") and (
            old is None
            or old["spec"].get("nodeName") != new["spec"].get("nodeName")
            or old["spec"].get("tolerations") != new["spec"].get("tolerations")
        ):
            self.queue.add((meta(new)["namespace"], meta(new)["name"]))

    def _node_changed(self, change: Change, new: Object, old: Object | None) -> None:
        if change == "DELETED" or (old is not None and _no_execute(old) == _no_execute(new)):
            return
        pods = self.context.informers("Pod")
        pods.add_index("node", node_of)
        for pod in pods.by_index("node", meta(new)["name"]):
            self.queue.add((meta(pod)["namespace"], meta(pod)["name"]))

    async def reconcile(self, key: tuple[str, str]) -> None:
        pod = self.pods.get(key[1], key[0])
        if pod is None or is_deleting(pod):
            return
        node = self.nodes.get(pod["spec"].get("nodeName") or "")
        tolerated = _tolerated_seconds(pod, _no_execute(node)) if node is not None else None
        uid = meta(pod)["uid"]
        if tolerated is None:
            if self._since.pop(uid, None) is not None:
                self.event(pod, "TaintManagerEviction", f"Cancelling deletion of Pod {key[0]}/{key[1]}")
            return
        clock = asyncio.get_running_loop().time()
        left = self._since.setdefault(uid, clock) + self.clock.real(tolerated) - clock
        if left > 0:
            self.queue.add_after(key, left + 0.01)
            return
        await self._evict(pod)

    async def _evict(self, pod: Object) -> None:
        name, namespace = meta(pod)["name"], meta(pod)["namespace"]
        self.event(pod, "TaintManagerEviction", f"Marking for deletion Pod {namespace}/{name}")
        disruption = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": now(),
        }
        body = {"status": {"conditions": [disruption]}}
        try:
            await self.kube.patch("Pod", name, body, namespace, type="strategic", subresource="status")
        except ApiError as error:
            if not error.not_found:
                raise
        await self.kube.delete("Pod", name, namespace, uid=meta(pod)["uid"])


def _no_execute(node: Object) -> list[tuple[str, str]]:
    taints = (node.get("spec") or {}).get("taints") or []
    return sorted((each["key"], each.get("value") or "") for each in taints if each["effect"] == "NoExecute")


def _tolerated_seconds(pod: Object, taints: list[tuple[str, str]]) -> float | None:
    """Simulated seconds that a pod may stay: 0 for an untolerated taint, None without a limit."""
    seconds: list[float] = []
    for key, value in taints:
        taint = {"key": key, "value": value, "effect": "NoExecute"}
        tolerating = [each for each in pod["spec"].get("tolerations") or [] if tolerates(each, taint)]
        if not tolerating:
            return 0.0
        seconds += [max(0.0, float(each["tolerationSeconds"])) for each in tolerating if "tolerationSeconds" in each]
    return min(seconds, default=None)
