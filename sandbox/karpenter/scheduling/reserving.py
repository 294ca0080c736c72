"""Who gets which reserved instance within one scheduling pass (kubernetes-sigs/karpenter v1.14.1
``pkg/controllers/provisioning/scheduling/reservationmanager.go`` and ``nodeclaim.go``, ``offeringsToReserve``).

A planned node takes a place in every reservation that it may be launched into, so a pass never plans more of them than
there are. While a reservation that would fit has free places that other planned nodes of this pass have taken, a pod is
put off to a later pass, and does not fall back to other capacity (``ReservedOfferingModeStrict``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sandbox.karpenter.cloudprovider.catalog import InstanceType, Offering
from sandbox.karpenter.requirements import Requirements


class PutOff(Exception):
    """The pod has to wait for a later pass."""


class Reserving:
    """
    :param left: reservation id -> free places by EC2's last answer.
    """

    def __init__(self, left: Callable[[str], int]) -> None:
        self._left = left
        self._taken: dict[str, set[int]] = {}

    def take(self, node: int, types: Iterable[InstanceType], wanted: Requirements) -> tuple[str, ...]:
        """The reservations of a planned node.

        :raises PutOff: there are some that fit, and other planned nodes have taken them.
        """
        fitting = {
            offering.reservation.id
            for each in types
            for offering in each.offered(wanted)
            if offering.reservation is not None and self._available(offering)
        }
        kept = []
        for identifier, holders in self._taken.items():
            if identifier not in fitting:
                holders.discard(node)
        for identifier in sorted(fitting):
            holders = self._taken.setdefault(identifier, set())
            if node in holders or len(holders) < self._left(identifier):
                holders.add(node)
                kept.append(identifier)
        if fitting and not kept:
            raise PutOff(
                "one or more instance types with compatible reserved offerings are available, but could not be reserved"
            )
        return tuple(kept)

    def _available(self, offering: Offering) -> bool:
        return (
            offering.reservation is not None
            and not offering.reservation.expiring
            and self._left(offering.reservation.id) > 0
        )
