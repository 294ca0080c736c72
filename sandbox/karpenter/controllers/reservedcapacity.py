"""What becomes of nodes in capacity reservations (aws/karpenter-provider-aws v1.14.1
``pkg/controllers/capacityreservation``): those in a block that is expiring are deleted (``expiration``), and those
whose instance is in no reservation any more become on-demand ones (``capacitytype``). Both look once a minute."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sandbox.karpenter.cloudprovider.catalog import CAPACITY_TYPE
from sandbox.karpenter.cloudprovider.cloud import instance_id
from sandbox.karpenter.cloudprovider.reserved import LABELS, RESERVATION_ID, RESERVED
from sandbox.karpenter.context import Context
from sandbox.karpenter.objects import deleting, labels, name, ours, provider_id, uid

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]

_PERIOD = 60.0  # simulated seconds between two looks
#: Real seconds; the shortest pause.
_LEAST = 0.5


class ReservedCapacity:
    """The two controllers, which look at the same claims."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(max(_LEAST, self._context.clock.real(_PERIOD)))
            claims = [
                each
                for each in self._context.claims.items()
                if ours(each["spec"]["nodeClassRef"]) and not deleting(each) and RESERVATION_ID in labels(each)
            ]
            if claims and self._context.reserved_capacity:
                await self._delete_expiring(claims)
                await self._demote(claims)

    async def _delete_expiring(self, claims: list[Object]) -> None:
        terms = [{"id": identifier} for identifier in sorted({labels(each)[RESERVATION_ID] for each in claims})]
        found = await self._context.cloud.reservations.find(terms)
        expiring = {each["id"] for each in found if each["state"] == "expiring"}
        for claim in claims:
            if labels(claim)[RESERVATION_ID] in expiring:
                log.info("initiating delete for capacity block expiration, NodeClaim %s", name(claim))
                await self._context.kube.delete("NodeClaim", name(claim), uid=uid(claim))

    async def _demote(self, claims: list[Object]) -> None:
        instances = await self._context.cloud.owned()
        gone = {"labels": {CAPACITY_TYPE: "on-demand", **dict.fromkeys(LABELS)}}
        for claim in claims:
            instance = instances.get(instance_id(provider_id(claim))) if provider_id(claim) else None
            current = self._context.claims.get(name(claim))
            if instance is None or instance.get("CapacityReservationId") or current is None or deleting(current):
                continue
            await self._context.patch_metadata(current, gone)
            node = self._context.state.node_of(current)
            if node is not None and not deleting(node) and labels(node).get(CAPACITY_TYPE) == RESERVED:
                await self._context.patch_node(node, {"metadata": gone}, locked=False)
