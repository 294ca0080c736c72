"""When a Capacity Block can be used, and when its nodes are given up. Pure.

EC2 begins to terminate the instances 30 minutes before the end of the block, 60 of UltraServers (Amazon EC2 User Guide,
'Capacity Blocks for ML'). Karpenter deletes their NodeClaims from 40 minutes before the end on, looking once a minute
(aws/karpenter-provider-aws v1.14.1 pkg/apis/v1/ec2nodeclass_status.go, ``CapacityReservationFromEC2``;
pkg/controllers/capacityreservation/expiration/controller.go): it evicts within the budgets and knows no deadline. So
the package is done before both::

    start ── usable ── stops ── drains ── empty ── Karpenter ── EC2 ── end
                       -75m     -60m      -45m     -40m         -30m
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_fleet.core.reservations.reservation import Reservation, ReservationState
from gpu_fleet.core.spec.capacity import CapacityBlock

#: Seconds before the end at which EC2 begins to terminate.
RECLAIM_S = 1800.0
#: Of UltraServers it begins so many times earlier.
_ULTRASERVER = 2.0


@dataclass(frozen=True)
class Ending:
    """The end of a block, in epoch seconds.

    :ivar stops: nothing new begins there.
    :ivar drains: the jobs have had their notice; evictions begin.
    :ivar empty: the pods have ended.
    :ivar ends: the block is over.
    """

    stops: float
    drains: float
    empty: float
    ends: float


def ending(block: CapacityBlock, end: float) -> Ending:
    """:param end: of the reservation, epoch seconds."""
    stops = end - float(block.margin)
    return Ending(stops, stops + float(block.notice), end - float(block.empty_before), end)


def reclaimed_at(reservation: Reservation, reclaim_s: float = RECLAIM_S) -> float | None:
    """When EC2 begins to terminate; ``None`` if the end is unknown.

    :param reclaim_s: seconds before the end; of UltraServers twice as many.
    """
    if reservation.end is None:
        return None
    return reservation.end - reclaim_s * (_ULTRASERVER if reservation.ultraserver else 1.0)


def usable(reservation: Reservation, block: CapacityBlock, now: float) -> bool:
    """Whether nodes can be launched, and jobs begin there."""
    begun = reservation.state == ReservationState.ACTIVE and (reservation.start is None or reservation.start <= now)
    return begun and (reservation.end is None or now < ending(block, reservation.end).stops)


def waited_for(reservation: Reservation, now: float) -> bool:
    """Whether it has yet to begin."""
    starts_later = reservation.start is not None and reservation.start > now
    return reservation.coming or (reservation.state == ReservationState.ACTIVE and starts_later)


def next_ending(reservations: Iterable[Reservation], block: CapacityBlock, now: float) -> Reservation | None:
    """Of the blocks that are in use or to come, the one that is given up first; ``None`` if there is none.

    :param now: epoch seconds; a block that is being given up already does not count.
    """
    ahead = [
        each
        for each in reservations
        if each.block and not each.over and each.end is not None and ending(block, each.end).stops > now
    ]
    return min(ahead, key=lambda each: (each.end or 0.0, each.id), default=None)
