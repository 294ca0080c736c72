"""Claims whose instance was terminated outside Karpenter (``pkg/controllers/nodeclaim/garbagecollection``)."""

from __future__ import annotations

import asyncio

from sandbox.karpenter.cloudprovider.cloud import instance_id
from sandbox.karpenter.conditions import condition, is_true
from sandbox.karpenter.context import Context
from sandbox.karpenter.objects import deleting, name, provider_id, uid

_COLLECT = 120.0  # simulated seconds between two looks


class GarbageCollection:
    """Deletes registered claims without an instance."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(max(1.0, self._context.clock.real(_COLLECT)))
            registered = [
                each for each in self._context.claims.items() if is_true(each, "Registered") and not deleting(each)
            ]
            if not registered:
                continue
            alive = {
                key
                for key, value in (await self._context.cloud.owned()).items()
                if value["State"]["Name"] != "shutting-down"
            }
            for claim in registered:
                node = self._context.state.node_of(claim)
                ready = node is not None and condition(node, "Ready").get("status") == "True"
                if instance_id(provider_id(claim)) not in alive and not ready:
                    await self._context.kube.delete("NodeClaim", name(claim), uid=uid(claim))
