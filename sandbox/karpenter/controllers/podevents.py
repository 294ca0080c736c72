"""When pods were last added to a node or removed from it (``pkg/controllers/nodeclaim/podevents``)."""

from __future__ import annotations

import asyncio
import logging
import time

from sandbox.karpenter.context import Context
from sandbox.karpenter.durations import epoch
from sandbox.karpenter.objects import Object, deleting, name, uid
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now

log = logging.getLogger("sandbox.karpenter")

#: Simulated seconds between two writes of a claim's ``lastPodEventTime``.
_QUIET = 10.0


class PodEvents:
    """Keeps ``status.lastPodEventTime`` of claims, by which ``consolidateAfter`` is measured."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._seen: dict[str, float] = {}
        self._background: set[asyncio.Task[None]] = set()

    def record(self, node_name: str) -> None:
        """A pod was bound to the node or left it: its claim is not consolidatable for a while."""
        node = self._context.nodes.get(node_name)
        claim = self._context.state.claim_of(node) if node is not None else None
        if claim is None or deleting(claim):
            return
        last = self._seen.get(uid(claim))
        self._seen[uid(claim)] = time.monotonic()
        self._context.condition_queue.add(name(claim))
        if last is None or time.monotonic() - last > self._context.clock.real(_QUIET):
            task = asyncio.create_task(self._write(name(claim)))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _write(self, claim_name: str) -> None:
        try:
            await self._context.kube.patch_status("NodeClaim", claim_name, {"lastPodEventTime": now()})
        except (ApiError, OSError) as error:
            log.debug("claim %s: %s", claim_name, error)

    def quiet_for(self, claim: Object) -> float:
        """Real seconds since a pod was last added or removed, or since the claim was initialized."""
        initialized = self._context.age(claim, "Initialized")
        event = self._seen.get(uid(claim))
        if event is not None:
            return min(initialized, time.monotonic() - event)
        stamp = (claim.get("status") or {}).get("lastPodEventTime")
        return min(initialized, time.time() - epoch(stamp)) if stamp else initialized
