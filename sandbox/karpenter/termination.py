"""The end of a node: taint, drain, volumes, instance, finalizer (``pkg/controllers/node/termination``)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sandbox.karpenter.conditions import Conditions, condition
from sandbox.karpenter.durations import epoch
from sandbox.karpenter.lifecycle import DEPENDENTS
from sandbox.karpenter.objects import (
    DEADLINE,
    DISRUPTED_TAINT,
    TERMINATION,
    active,
    deleting,
    drainable,
    labels,
    name,
    notes,
    owned_by,
    protected,
    same_taint,
    terminal,
    uid,
)
from sandbox.resources import ApiError

if TYPE_CHECKING:
    from sandbox.karpenter.controller import Karpenter

Object = dict[str, Any]
Key = tuple[str, str, str]

# Simulated seconds.
LEAST_DRAIN = 5.0
_DRAIN_POLL = 1.0
_INSTANCE_POLL = 5.0
_LEAST_PAUSE = 0.05  # real seconds
_STUCK = 60.0  # a pod that is terminating for so long past its grace is not waited for
EXCLUDE_BALANCERS = "node.kubernetes.io/exclude-from-external-load-balancers"
_CRITICAL = ("system-cluster-critical", "system-node-critical")


class _Again(Exception):
    """Put the pod back into the eviction queue."""


class NodeTermination:
    """Reconciles one deleted Node at a time, and evicts in the background."""

    def __init__(self, karpenter: Karpenter) -> None:
        self._karpenter = karpenter
        self._enqueued: dict[Key, float | None] = {}

    async def reconcile(self, node_name: str) -> None:
        karpenter = self._karpenter
        node = karpenter.nodes.get(node_name)
        if node is None or not deleting(node) or TERMINATION not in (node["metadata"].get("finalizers") or []):
            return
        claim = karpenter.state.claim_of(node)
        if claim is not None and not deleting(claim):
            await karpenter.kube.delete("NodeClaim", name(claim), uid=uid(claim))
            karpenter.node_queue.add_after(node_name, karpenter.clock.real(_DRAIN_POLL))
            return
        if condition(node, "Ready").get("status") != "True" and not await self._instance(node):
            await self._release(node)
            return
        deadline = self._deadline(node, claim)
        node = await self._tainted(node)
        drained = self._drain(node, deadline)
        if claim is None:
            if drained:
                await self._release(node)
            else:
                karpenter.node_queue.add_after(node_name, karpenter.clock.real(_DRAIN_POLL))
            return
        conditions = Conditions(claim, DEPENDENTS)
        if conditions.get("Drained") is None:
            conditions.set_unknown("Drained", "Draining", "Draining")
        pause: float | None = _DRAIN_POLL
        if not conditions.is_true("Drained") and drained:
            since = karpenter.age(claim, "Drained") if condition(claim, "Drained") else 0.0
            if since >= karpenter.clock.real(LEAST_DRAIN):
                conditions.set_true("Drained")
        if conditions.is_true("Drained"):
            # The sandbox has no VolumeAttachments: nothing to wait for.
            conditions.set_true("VolumesDetached")
            there = await karpenter.cloud.terminate(str(claim["status"]["providerID"]))
            conditions.set_true("InstanceTerminating")
            pause = _INSTANCE_POLL if there else None
        await karpenter.write_status(claim, {**(claim.get("status") or {}), "conditions": conditions.shown()})
        if pause is None:
            await self._release(node)
        else:
            karpenter.node_queue.add_after(node_name, max(_LEAST_PAUSE, karpenter.clock.real(pause)))

    async def _instance(self, node: Object) -> bool:
        return await self._karpenter.cloud.instance(str(node["spec"].get("providerID", ""))) is not None

    async def _release(self, node: Object) -> None:
        left = [each for each in node["metadata"].get("finalizers") or [] if each != TERMINATION]
        await self._karpenter.patch_node(node, {"metadata": {"finalizers": left}}, gone=True)

    async def _tainted(self, node: Object) -> Object:
        taints = node["spec"].get("taints") or []
        if any(same_taint(each, DISRUPTED_TAINT) for each in taints) and EXCLUDE_BALANCERS in labels(node):
            return node
        kept = [each for each in taints if each["key"] != DISRUPTED_TAINT["key"]]
        patch = {
            "metadata": {"labels": {EXCLUDE_BALANCERS: "karpenter"}},
            "spec": {"taints": [*kept, dict(DISRUPTED_TAINT)]},
        }
        return await self._karpenter.patch_node(node, patch)

    def _deadline(self, node: Object, claim: Object | None) -> float | None:
        """Epoch seconds at which pods have to be gone, past all protection."""
        moment = notes(claim).get(DEADLINE) if claim is not None else None
        if moment is None:
            return None
        self._karpenter.events.grace_expiring(node, moment)
        return epoch(moment)

    # --- drain ---------------------------------------------------------------------------------------------------

    def _drain(self, node: Object, deadline: float | None) -> bool:
        """Hand the next group to the eviction queue; True when no pod has to be waited for."""
        waiting = [pod for pod in self._karpenter.state.pods_on(name(node)) if self._waits(pod)]
        overdue = [pod for pod in waiting if self._overdue(pod, deadline)]
        for pod in overdue:
            self._enqueue(pod, deadline)
        for group in eviction_groups(pod for pod in waiting if pod not in overdue):
            if group:
                for pod in group:
                    self._enqueue(pod, deadline)
                break
        if waiting:
            self._karpenter.events.failed_draining(node, f"{len(waiting)} pods are waiting to be evicted")
        return not waiting

    def _waits(self, pod: Object) -> bool:
        if terminal(pod) or not drainable(pod):
            return False
        if not deleting(pod):
            return True
        return time.time() - epoch(pod["metadata"]["deletionTimestamp"]) <= self._karpenter.clock.real(_STUCK)

    def _overdue(self, pod: Object, deadline: float | None) -> bool:
        """Its own grace period, in the sandbox's time, would reach past the deadline."""
        if deadline is None:
            return False
        if deleting(pod):
            return epoch(pod["metadata"]["deletionTimestamp"]) > deadline
        grace = pod["spec"].get("terminationGracePeriodSeconds")
        return grace is not None and time.time() > deadline - self._karpenter.clock.real(grace)

    def _enqueue(self, pod: Object, deadline: float | None) -> None:
        key = (pod["metadata"]["namespace"], name(pod), uid(pod))
        if key not in self._enqueued:
            self._enqueued[key] = deadline
            self._karpenter.eviction_queue.add(key)

    async def evict(self, key: Key) -> None:
        """One pod: by the Eviction API, or past its protection once it is overdue."""
        karpenter = self._karpenter
        namespace, pod_name, pod_uid = key
        pod = karpenter.pods.get(pod_name, namespace)
        if pod is None or uid(pod) != pod_uid or key not in self._enqueued:
            self._enqueued.pop(key, None)
            return
        deadline = self._enqueued[key]
        if deadline is not None and self._overdue(pod, deadline):
            await self._force(pod, deadline)
            self._enqueued.pop(key, None)
            return
        if not active(pod):
            self._enqueued.pop(key, None)
            return
        if protected(pod, karpenter.clock.speed):
            karpenter.retry_eviction(key)
            return
        try:
            await karpenter.kube.evict(namespace, pod_name)
        except ApiError as error:
            if error.not_found or error.code == 409:
                self._enqueued.pop(key, None)
                return
            if error.code != 429 and "more than one PodDisruptionBudget" not in error.message:
                raise
            karpenter.retry_eviction(key)
            return
        self._enqueued.pop(key, None)
        karpenter.eviction_succeeded(key)
        karpenter.events.evicted(pod, self._reason(pod))

    async def _force(self, pod: Object, deadline: float) -> None:
        karpenter = self._karpenter
        left = (deadline - time.time()) * karpenter.clock.speed
        grace = max(1, int(left))
        own = int(pod["spec"].get("terminationGracePeriodSeconds", 30))
        karpenter.events.deleted_past_protection(pod, grace, own, karpenter.moment(deadline))
        await karpenter.kube.delete("Pod", name(pod), pod["metadata"]["namespace"], uid=uid(pod), grace_seconds=grace)

    def _reason(self, pod: Object) -> str:
        node = self._karpenter.nodes.get(pod["spec"].get("nodeName", ""))
        claim = self._karpenter.state.claim_of(node) if node is not None else None
        disrupted = condition(claim, "DisruptionReason") if claim is not None else {}
        return str(disrupted["reason"]) if disrupted.get("status") == "True" else "Forceful Termination"


def eviction_groups(pods: Any) -> list[list[Object]]:
    """Non-critical, non-critical of DaemonSets, critical, critical of DaemonSets: each waits for the one before."""
    groups: list[list[Object]] = [[], [], [], []]
    for pod in pods:
        critical = pod["spec"].get("priorityClassName") in _CRITICAL
        groups[2 * critical + owned_by(pod, "DaemonSet")].append(pod)
    return groups
