"""The end of a node: taint, drain, volumes, instance, finalizer.

After kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/node/termination`` and ``terminator`` there.
"""

from __future__ import annotations

import time
from typing import Any

from sandbox.karpenter.conditions import Conditions, condition
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers.lifecycle import DEPENDENTS
from sandbox.karpenter.durations import epoch, timestamp
from sandbox.karpenter.objects import (
    DEADLINE,
    DISRUPTED_TAINT,
    TERMINATION,
    active,
    annotations_of,
    deleting,
    drainable,
    labels,
    name,
    owned_by,
    protected,
    same_taint,
    terminal,
    uid,
)
from sandbox.kube.resources import ApiError

Object = dict[str, Any]
Key = tuple[str, str, str]

# Simulated seconds.
LEAST_DRAIN = 5.0
_DRAIN_POLL = 1.0
_INSTANCE_POLL = 5.0
_EVICTION_RETRY, _EVICTION_LARGEST = 0.1, 10.0
_LEAST_PAUSE = 0.05  # real seconds
_STUCK = 60.0  # a pod that is terminating for so long past its grace is not waited for
EXCLUDE_BALANCERS = "node.kubernetes.io/exclude-from-external-load-balancers"
_CRITICAL = ("system-cluster-critical", "system-node-critical")


class NodeTermination:
    """Reconciles one deleted Node at a time, and evicts in the background."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._enqueued: set[Key] = set()
        self._tries: dict[Key, int] = {}

    async def reconcile(self, node_name: str) -> None:
        context = self._context
        node = context.nodes.get(node_name)
        if node is None or not deleting(node) or TERMINATION not in (node["metadata"].get("finalizers") or []):
            return
        claim = context.state.claim_of(node)
        if claim is not None and not deleting(claim):
            await context.kube.delete("NodeClaim", name(claim), uid=uid(claim))
            context.node_queue.add_after(node_name, context.clock.real(_DRAIN_POLL))
            return
        if condition(node, "Ready").get("status") != "True" and not await self._instance(node):
            await self._release(node)
            return
        deadline = self._deadline(node, claim)
        node = await self._tainted(node)
        drained = await self._drain(node, deadline)
        if claim is None:
            if drained:
                await self._release(node)
            else:
                context.node_queue.add_after(node_name, context.clock.real(_DRAIN_POLL))
            return
        conditions = Conditions(claim, DEPENDENTS)
        if conditions.get("Drained") is None:
            conditions.set_unknown("Drained", "Draining", "Draining")
        pause: float | None = _DRAIN_POLL
        if not conditions.is_true("Drained") and drained:
            since = context.age(claim, "Drained") if condition(claim, "Drained") else 0.0
            if since >= context.clock.real(LEAST_DRAIN):
                conditions.set_true("Drained")
        if drained and conditions.is_true("Drained"):
            # The sandbox has no VolumeAttachments: nothing to wait for.
            conditions.set_true("VolumesDetached")
            there = await context.cloud.terminate(str(claim["status"]["providerID"]))
            conditions.set_true("InstanceTerminating")
            pause = _INSTANCE_POLL if there else None
        await context.write_status(claim, {**(claim.get("status") or {}), "conditions": conditions.shown()})
        if pause is None:
            await self._release(node)
        else:
            context.node_queue.add_after(node_name, max(_LEAST_PAUSE, context.clock.real(pause)))

    async def _instance(self, node: Object) -> bool:
        return await self._context.cloud.instance(str(node["spec"].get("providerID", ""))) is not None

    async def _release(self, node: Object) -> None:
        left = [each for each in node["metadata"].get("finalizers") or [] if each != TERMINATION]
        await self._context.patch_node(node, {"metadata": {"finalizers": left}}, gone=True)

    async def _tainted(self, node: Object) -> Object:
        taints = node["spec"].get("taints") or []
        if any(same_taint(each, DISRUPTED_TAINT) for each in taints) and EXCLUDE_BALANCERS in labels(node):
            return node
        kept = [each for each in taints if each["key"] != DISRUPTED_TAINT["key"]]
        patch = {
            "metadata": {"labels": {EXCLUDE_BALANCERS: "karpenter"}},
            "spec": {"taints": [*kept, dict(DISRUPTED_TAINT)]},
        }
        return await self._context.patch_node(node, patch)

    def _deadline(self, node: Object, claim: Object | None) -> float | None:
        """Epoch seconds at which pods are deleted despite any protection."""
        moment = annotations_of(claim).get(DEADLINE) if claim is not None else None
        if moment is None:
            return None
        self._context.events.grace_expiring(node, moment)
        return epoch(moment)

    # --- drain ---------------------------------------------------------------------------------------------------

    async def _drain(self, node: Object, deadline: float | None) -> bool:
        """Hand the next group to the eviction queue; True when no pod has to be waited for.

        Pods that end too late are deleted whatever their group, and hold up the groups behind theirs until they are
        gone (``Drain``, ``DeleteExpiringPods``).
        """
        waiting = [pod for pod in self._context.state.pods_on(name(node)) if self._waits(pod)]
        for pod in waiting:
            if deadline is not None and self._overdue(pod, deadline):
                await self._force(pod, deadline)
        for group in eviction_groups(waiting):
            if group:
                for pod in group:
                    self._enqueue(pod)
                break
        if waiting:
            self._context.events.failed_draining(node, f"{len(waiting)} pods are waiting to be evicted")
        return not waiting

    def _waits(self, pod: Object) -> bool:
        if terminal(pod) or not drainable(pod):
            return False
        if not deleting(pod):
            return True
        return time.time() - epoch(pod["metadata"]["deletionTimestamp"]) <= self._context.clock.real(_STUCK)

    def _overdue(self, pod: Object, deadline: float) -> bool:
        """Its own grace period would reach past the deadline, and it was not deleted in time."""
        grace = pod["spec"].get("terminationGracePeriodSeconds")
        if grace is None or time.time() <= deadline - self._context.clock.real(grace):
            return False
        return not deleting(pod) or self._end(pod) > deadline

    def _end(self, pod: Object) -> float:
        """The moment at which a deleted pod's grace period is over; the API server adds it in real seconds."""
        granted = pod["metadata"].get("deletionGracePeriodSeconds") or 0
        return epoch(pod["metadata"]["deletionTimestamp"]) - granted + self._context.clock.real(granted)

    def _enqueue(self, pod: Object) -> None:
        """Unless its eviction is not to be requested, for example while it is protected (``IsEvictable``)."""
        key = (pod["metadata"]["namespace"], name(pod), uid(pod))
        if active(pod) and not protected(pod, self._context.clock.speed) and key not in self._enqueued:
            self._enqueued.add(key)
            self._context.eviction_queue.add(key)

    def _retry(self, key: Key) -> None:
        """Exponential back-off as the real eviction queue's: 100 ms to 10 s."""
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        delay = min(_EVICTION_LARGEST, _EVICTION_RETRY * 2.0 ** min(tries - 1, 10))
        self._context.eviction_queue.add_after(key, self._context.clock.real(delay))

    async def evict(self, key: Key) -> None:
        """One pod, by the Eviction API. What was annotated since it was enqueued is not looked at (``eviction.go``)."""
        context = self._context
        namespace, pod_name, pod_uid = key
        pod = context.pods.get(pod_name, namespace)
        if pod is None or uid(pod) != pod_uid:
            self._done(key)
            return
        try:
            await context.kube.evict(namespace, pod_name, uid=pod_uid)
        except ApiError as error:
            if error.not_found or error.code == 409:
                self._done(key)
                return
            if error.code != 429 and "more than one PodDisruptionBudget" not in error.message:
                raise
            self._retry(key)
            return
        self._done(key)
        context.events.evicted(pod, self._reason(pod))

    def _done(self, key: Key) -> None:
        self._enqueued.discard(key)
        self._tries.pop(key, None)

    async def _force(self, pod: Object, deadline: float) -> None:
        """Delete a pod past its protection, with what is left of its grace period: a second at least."""
        context = self._context
        grace = max(1, int((deadline - time.time()) * context.clock.speed))
        own = int(pod["spec"]["terminationGracePeriodSeconds"])
        context.events.deleted_past_protection(pod, grace, own, timestamp(deadline))
        await context.kube.delete("Pod", name(pod), pod["metadata"]["namespace"], uid=uid(pod), grace_seconds=grace)

    def _reason(self, pod: Object) -> str:
        node = self._context.nodes.get(pod["spec"].get("nodeName", ""))
        claim = self._context.state.claim_of(node) if node is not None else None
        disrupted = condition(claim, "DisruptionReason") if claim is not None else {}
        return str(disrupted["reason"]) if disrupted.get("status") == "True" else "Forceful Termination"


def eviction_groups(pods: Any) -> list[list[Object]]:
    """Non-critical, non-critical of DaemonSets, critical, critical of DaemonSets: each waits for the one before."""
    groups: list[list[Object]] = [[], [], [], []]
    for pod in pods:
        critical = pod["spec"].get("priorityClassName") in _CRITICAL
        groups[2 * critical + owned_by(pod, "DaemonSet")].append(pod)
    return groups
