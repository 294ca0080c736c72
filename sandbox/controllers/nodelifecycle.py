"""The node lifecycle controller: notices dead kubelets and turns node conditions into taints.

Source: kubernetes/kubernetes ``pkg/controller/nodelifecycle/node_lifecycle_controller.go``. A kubelet lives while
it renews its Lease in ``kube-node-lease`` or updates its node's Ready condition.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sandbox.controllers.base import Context, Controller
from sandbox.controllers.objects import Object, condition, holds, is_deleting, is_finished, meta
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now

#: Simulated seconds without a heartbeat (``--node-monitor-grace-period`` since 1.32). A kubelet renews every 10 s,
#: so its death is noticed 40 to 50 s later.
GRACE = 50.0
#: The shortest grace period in real seconds: at high speed, a short pause of this machine would lose every node.
LEAST_GRACE = 5.0
LEASE_NAMESPACE = "kube-node-lease"

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
CORDONED = "node.kubernetes.io/unschedulable"
PRESSURE_TAINTS = {
    "MemoryPressure": "node.kubernetes.io/memory-pressure",
    "DiskPressure": "node.kubernetes.io/disk-pressure",
    "PIDPressure": "node.kubernetes.io/pid-pressure",
    "NetworkUnavailable": "node.kubernetes.io/network-unavailable",
}
OWN_TAINTS = {NOT_READY, UNREACHABLE, CORDONED, *PRESSURE_TAINTS.values()}
#: Conditions that become Unknown when no kubelet reports them any more.
VOUCHED = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")


class NodeLifecycleController(Controller):
    """Keys are node names."""

    name = "node-controller"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._last_sign: dict[str, tuple[Any, float]] = {}

    def wire(self) -> None:
        self.nodes = self.watch("Node", self._node_changed)
        self.leases = self.watch("Lease", self._lease_changed)
        self.pods = self.watch("Pod")
        self.pods.add_index("node", node_of)

    @property
    def grace(self) -> float:
        """Real seconds."""
        return max(self.clock.real(GRACE), LEAST_GRACE)

    def _node_changed(self, change: Change, new: Object, old: Object | None) -> None:
        name = meta(new)["name"]
        if change == "DELETED":
            self._last_sign.pop(name, None)
            return
        ready = condition(new, "Ready")
        if ready is None or ready.get("reason") != "NodeStatusUnknown":  # set by this controller: not a heartbeat
            self._sign(name)
        if old is None or _tainting(old) != _tainting(new):
            self.queue.add(name)

    def _lease_changed(self, change: Change, new: Object, _old: Object | None) -> None:
        if meta(new)["namespace"] == LEASE_NAMESPACE and change != "DELETED":
            self._sign(meta(new)["name"])

    def _sign(self, name: str) -> None:
        """Record a new heartbeat; an unchanged one does not count."""
        node = self.context.informers("Node").get(name)
        lease = self.context.informers("Lease").get(name, LEASE_NAMESPACE)
        marker = (
            (lease or {}).get("spec", {}).get("renewTime"),
            (condition(node or {}, "Ready") or {}).get("lastHeartbeatTime"),
            meta(node).get("uid") if node else None,
        )
        if self._last_sign.get(name, (None, 0.0))[0] != marker:
            self._last_sign[name] = (marker, asyncio.get_running_loop().time())

    async def reconcile(self, key: str) -> None:
        node = self.nodes.get(key)
        if node is None:
            return
        node = await self._watch_over(node)
        await self._taint(node)

    # --- heartbeat ---------------------------------------------------------------------------------------------

    async def _watch_over(self, node: Object) -> Object:
        name = meta(node)["name"]
        ready = condition(node, "Ready")
        if ready is not None and ready["status"] == "Unknown" and ready.get("reason") == "NodeStatusUnknown":
            return node  # the kubelet's next status update restores it
        clock = asyncio.get_running_loop().time()
        _, last = self._last_sign.setdefault(name, (None, clock))
        left = last + self.grace - clock
        if left > 0:
            self.queue.add_after(name, left + 0.01)
            return node
        # Before a node counts as lost: was this process merely too busy to receive its heartbeat?
        if await self._lives_after_all(name):
            self.queue.add_after(name, self.grace)
            return node
        return await self._give_up(node)

    async def _lives_after_all(self, name: str) -> bool:
        lease = await self.kube.find("Lease", name, LEASE_NAMESPACE)
        known = self._last_sign[name][0]
        renewed = (lease or {}).get("spec", {}).get("renewTime")
        if lease is None or renewed == (known[0] if known else None):
            return False
        self._last_sign[name] = ((renewed, *(known[1:] if known else (None, None))), asyncio.get_running_loop().time())
        return True

    async def _give_up(self, node: Object) -> Object:
        name = meta(node)["name"]
        conditions = []
        for kind in VOUCHED:
            present = condition(node, kind)
            if present is not None and present["status"] == "Unknown":
                continue
            never = present is None
            fresh = {
                "type": kind,
                "status": "Unknown",
                "reason": "NodeStatusNeverUpdated" if never else "NodeStatusUnknown",
                "message": "Kubelet never posted node status." if never else "Kubelet stopped posting node status.",
                "lastHeartbeatTime": (present or {}).get("lastHeartbeatTime") or meta(node)["creationTimestamp"],
                "lastTransitionTime": now(),
            }
            conditions.append({field: value for field, value in fresh.items() if value is not None})
        if not conditions:
            return node
        body = {"status": {"conditions": conditions}}
        node = await self.kube.patch("Node", name, body, type="strategic", subresource="status")
        await self.nodes.caught_up(node)
        self.event(node, "NodeNotReady", f"Node {name} status is now: NodeNotReady")
        for pod in self.pods.by_index("node", name):
            if holds(pod, "Ready") and not is_finished(pod):
                await self._mark_unready(pod)
        return node

    async def _mark_unready(self, pod: Object) -> None:
        body = {"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now()}]}}
        try:
            await self.kube.patch(
                "Pod", meta(pod)["name"], body, meta(pod)["namespace"], type="strategic", subresource="status"
            )
        except ApiError as error:
            if not error.not_found:
                raise
        self.event(pod, "NodeNotReady", "Node is not ready", "Warning")

    # --- taints ------------------------------------------------------------------------------------------------

    async def _taint(self, node: Object) -> None:
        present = (node.get("spec") or {}).get("taints") or []
        wanted = _wanted_taints(node)
        kept = [taint for taint in present if taint["key"] not in OWN_TAINTS or _identity(taint) in wanted]
        have = {_identity(taint) for taint in kept}
        added = [
            {"key": key, "effect": effect, "timeAdded": now()} for key, effect in wanted if (key, effect) not in have
        ]
        if not added and len(kept) == len(present):
            return
        # Karpenter and kubectl write this list too: with the resourceVersion, none of their taints is lost.
        body = {
            "metadata": {"resourceVersion": meta(node)["resourceVersion"]},
            "spec": {"taints": kept + added or None},
        }
        answer = await self.kube.patch("Node", meta(node)["name"], body)
        await self.nodes.caught_up(answer)


def _identity(taint: Object) -> tuple[str, str]:
    return taint["key"], taint["effect"]


def _wanted_taints(node: Object) -> list[tuple[str, str]]:
    wanted: list[tuple[str, str]] = []
    ready = condition(node, "Ready")
    if ready is None or ready["status"] != "True":
        key = UNREACHABLE if ready is not None and ready["status"] == "Unknown" else NOT_READY
        wanted.append((key, "NoSchedule"))
        if ready is not None and not is_deleting(node):
            wanted.append((key, "NoExecute"))
    wanted += [(key, "NoSchedule") for kind, key in PRESSURE_TAINTS.items() if holds(node, kind)]
    if (node.get("spec") or {}).get("unschedulable"):
        wanted.append((CORDONED, "NoSchedule"))
    return wanted


def _tainting(node: Object) -> tuple[Any, ...]:
    statuses = tuple((condition(node, kind) or {}).get("status") for kind in ("Ready", *PRESSURE_TAINTS))
    spec = node.get("spec") or {}
    return statuses, spec.get("taints"), spec.get("unschedulable"), meta(node)["uid"]


def node_of(pod: Object) -> tuple[str, ...]:
    """Index function: the node a pod is bound to."""
    return (pod["spec"]["nodeName"],) if pod["spec"].get("nodeName") else ()
