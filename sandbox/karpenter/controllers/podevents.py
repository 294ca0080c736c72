"""When pods last came to a node or left it, as far as it counts for ``consolidateAfter``.

After kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/nodeclaim/podevents/controller.go``.
"""

from __future__ import annotations

import asyncio
import logging
import time

from sandbox.karpenter.conditions import is_true
from sandbox.karpenter.context import Context
from sandbox.karpenter.durations import epoch, seconds
from sandbox.karpenter.objects import Object, deleting, name, ours, owned_by, terminal, uid
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now

log = logging.getLogger("sandbox.karpenter")

#: Simulated seconds after a recorded event in which others of the same claim are dropped (``dedupeTimeout``).
_DEDUPE = 10.0


def counts(change: Change, pod: Object, old: Object | None) -> bool:
    """Whether a change of a pod starts a reconcile that can find it (the event filter of ``Register``).

    A pod counts when it is bound, succeeds or fails, or is marked for deletion, and once when Karpenter starts. It does
    not count when it is gone: the controller looks it up and finds nothing. So a pod that is deleted without a grace
    period leaves no event.
    """
    if change == "DELETED" or not pod["spec"].get("nodeName"):
        return False
    if change == "ADDED" or old is None:
        return True
    bound = not old["spec"].get("nodeName")
    return bound or (not terminal(old) and terminal(pod)) or (not deleting(old) and deleting(pod))


class PodEvents:
    """Keeps ``status.lastPodEventTime`` of claims, by which ``consolidateAfter`` is measured.

    The API keeps whole seconds, which are long in a fast sandbox. So what this process recorded is measured exactly.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._recorded: dict[str, float] = {}
        self._background: set[asyncio.Task[None]] = set()

    def changed(self, change: Change, pod: Object, old: Object | None) -> None:
        """Record the present time for the claim of the pod's node. Pods of DaemonSets do not count (``Reconcile``)."""
        if not counts(change, pod, old) or owned_by(pod, "DaemonSet"):
            return
        node = self._context.nodes.get(pod["spec"]["nodeName"])
        claim = self._context.state.claim_of(node) if node is not None else None
        if claim is None or not ours(claim["spec"]["nodeClassRef"]):
            return
        since = self._since(claim)
        if since is not None and since < self._context.clock.real(_DEDUPE):
            return
        self._recorded[uid(claim)] = time.monotonic()
        self._context.condition_queue.add(name(claim))
        task = asyncio.create_task(self._write(name(claim)))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _write(self, claim_name: str) -> None:
        try:
            await self._context.kube.patch_status("NodeClaim", claim_name, {"lastPodEventTime": now()})
        except (ApiError, OSError) as error:
            log.debug("claim %s: %s", claim_name, error)

    def _since(self, claim: Object) -> float | None:
        """Real seconds since the recorded event, or None if there is none."""
        recorded = self._recorded.get(uid(claim))
        if recorded is not None:
            return time.monotonic() - recorded
        stamp = (claim.get("status") or {}).get("lastPodEventTime")
        return time.time() - epoch(stamp) if stamp else None

    def left(self, pool: Object, claim: Object) -> float:
        """Real seconds until ``consolidateAfter`` has passed since the last event; 0 for a claim to which it does not
        apply (``pkg/utils/disruption/disruption.go``, IsUnderConsolidateAfter).

        Without an event it is counted from the claim's initialization, with one never, even if the event was earlier.
        """
        after = seconds((pool["spec"].get("disruption") or {}).get("consolidateAfter"))
        if not after or not is_true(claim, "Initialized"):
            return 0.0
        since = self._since(claim)
        quiet = self._context.age(claim, "Initialized") if since is None else since
        return max(0.0, self._context.clock.real(after) - quiet)
