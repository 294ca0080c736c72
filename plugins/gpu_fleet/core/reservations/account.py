"""What of a Capacity Block was paid for and not used. Pure.

A block is paid in advance for all its instances, from its start to its end. Used is an instance while a node runs on
it; what jobs computed there, the node does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.reservations.reservation import Reservation, shown

_HOUR = 3600.0


@dataclass(frozen=True)
class Account:
    """Instance hours of a block.

    :ivar nodes: nodes that were there when the block was given up.
    :ivar late: between the start of the block and the nodes' joining.
    :ivar early: between the last pod's end and the end of the block, on those nodes.
    :ivar idle: of instances on which no node was at the end.
    """

    reservation: str
    words: str
    start: float
    end: float
    total: int
    nodes: int
    paid: float
    late: float
    early: float
    idle: float

    @property
    def unused(self) -> float:
        return self.late + self.early + self.idle

    def to_json(self) -> dict[str, Any]:
        return {
            "reservation": self.reservation,
            "words": self.words,
            "start": self.start,
            "end": self.end,
            "total": self.total,
            "nodes": self.nodes,
            "paidHours": round(self.paid, 3),
            "unusedHours": round(self.unused, 3),
            "lateHours": round(self.late, 3),
            "earlyHours": round(self.early, 3),
            "idleHours": round(self.idle, 3),
        }


def account_of(reservation: Reservation, nodes: Iterable[Mapping[str, Any]], now: float) -> Account | None:
    """The account at the end of a block; ``None`` if EC2 does not say when it began or ends, or how large it is.

    :param nodes: rows of the drain's report: ``created`` and ``emptiedAt``, epoch seconds, if they are known.
    :param now: epoch seconds; until then a node without ``emptiedAt`` is used.
    """
    start, end, total = reservation.start, reservation.end, reservation.total
    if start is None or end is None or not total or end <= start:
        return None
    late = early = 0.0
    count = 0
    for node in nodes:
        count += 1
        created = float(node.get("created") or start)
        emptied = float(node.get("emptiedAt") or now)
        begun = min(max(created, start), end)
        late += begun - start
        early += end - min(max(emptied, begun), end)
    idle = max(0, total - count) * (end - start)
    return Account(
        reservation=reservation.id,
        words=f"{reservation} from {shown(start)} to {shown(end)}",
        start=start,
        end=end,
        total=total,
        nodes=count,
        paid=total * (end - start) / _HOUR,
        late=late / _HOUR,
        early=early / _HOUR,
        idle=idle / _HOUR,
    )
