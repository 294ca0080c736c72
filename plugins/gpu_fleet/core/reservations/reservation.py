"""A capacity reservation as EC2 describes it, a Capacity Block included, and the calls that find those of a pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.names import RESERVATION_BLOCK, RESERVATION_DEFAULT
from gpu_fleet.core.queries import AwsQuery
from gpu_fleet.core.spec.capacity import ReservationTerm

#: EC2's answers for an id that is not there: none of this account, and none that is shared with it (Amazon EC2 API,
#: 'Error codes'). The second one is for ids that are none.
ABSENT = ("InvalidCapacityReservationId.NotFound", "InvalidCapacityReservationId.Malformed")
#: Tag with the number of instances of a Capacity Block that has yet to begin; its own counts are 0 until then (Amazon
#: EC2 User Guide, 'View Capacity Blocks').
COMING_COUNT = "aws:ec2capacityreservation:incrementalRequestedQuantity"
#: Families of UltraServers (Amazon EC2 User Guide, 'Amazon EC2 UltraServers').
_ULTRASERVERS = ("p6e-gb200", "p6e-gb300")


class ReservationState(StrEnum):
    """``State`` of a CapacityReservation (Amazon EC2 API)."""

    ACTIVE = "active"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CANCELLING = "cancelling"
    PENDING = "pending"
    FAILED = "failed"
    SCHEDULED = "scheduled"
    PAYMENT_PENDING = "payment-pending"
    PAYMENT_FAILED = "payment-failed"
    ASSESSING = "assessing"
    DELAYED = "delayed"
    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"


#: Nothing can be launched yet, and that needs only time.
COMING = frozenset(
    {
        ReservationState.PENDING,
        ReservationState.SCHEDULED,
        ReservationState.PAYMENT_PENDING,
        ReservationState.ASSESSING,
        ReservationState.DELAYED,
    }
)
#: Nothing can be launched any more.
OVER = frozenset(
    {
        ReservationState.EXPIRED,
        ReservationState.CANCELLED,
        ReservationState.CANCELLING,
        ReservationState.FAILED,
        ReservationState.PAYMENT_FAILED,
        ReservationState.UNSUPPORTED,
        ReservationState.UNAVAILABLE,
    }
)


@dataclass(frozen=True)
class Reservation:
    """
    :ivar kind: ``default`` or ``capacity-block``.
    :ivar total: instances that it holds; of one that has yet to begin, those that it will hold.
    :ivar available: of those, how many can be launched now.
    :ivar start: when it began, or will, epoch seconds; ``None`` if EC2 does not say.
    :ivar end: when it ends; ``None``: when somebody cancels it.
    :ivar match: ``open`` or ``targeted``.
    """

    id: str
    state: str
    kind: str = RESERVATION_DEFAULT
    instance_type: str = ""
    zone: str = ""
    owner: str = ""
    platform: str = ""
    tenancy: str = "default"
    total: int = 0
    available: int = 0
    start: float | None = None
    end: float | None = None
    match: str = ""
    interruptible: bool = False
    launchable: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Reservation:
        """From an item of ``DescribeCapacityReservations``."""
        tags = {str(tag["Key"]): str(tag["Value"]) for tag in item.get("Tags") or []}
        coming = tags.get(COMING_COUNT, "")
        return cls(
            id=str(item["CapacityReservationId"]),
            state=str(item.get("State") or ""),
            kind=str(item.get("ReservationType") or RESERVATION_DEFAULT),
            instance_type=str(item.get("InstanceType") or ""),
            zone=str(item.get("AvailabilityZone") or ""),
            owner=str(item.get("OwnerId") or ""),
            platform=str(item.get("InstancePlatform") or ""),
            tenancy=str(item.get("Tenancy") or "default"),
            total=int(item.get("TotalInstanceCount") or (coming if coming.isdecimal() else 0)),
            available=int(item.get("AvailableInstanceCount") or 0),
            start=epoch(item.get("StartDate")),
            end=epoch(item.get("EndDate")),
            match=str(item.get("InstanceMatchCriteria") or ""),
            interruptible=bool(item.get("Interruptible")),
            launchable=item.get("LaunchStatus") != "unlaunchable",
            tags=tags,
        )

    @property
    def block(self) -> bool:
        """Whether it is a Capacity Block: EC2 terminates its instances before its end."""
        return self.kind == RESERVATION_BLOCK

    @property
    def ultraserver(self) -> bool:
        return self.instance_type.partition(".")[0] in _ULTRASERVERS

    @property
    def coming(self) -> bool:
        return self.state in COMING

    @property
    def over(self) -> bool:
        return self.state in OVER

    def __str__(self) -> str:
        what = "Capacity Block" if self.block else "capacity reservation"
        return f"{what} {self.id} ({self.total} x {self.instance_type} in {self.zone})"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "state": self.state,
            "instanceType": self.instance_type,
            "zone": self.zone,
            "total": self.total,
            "start": self.start,
            "end": self.end,
        }


def queries(prefix: str, terms: Sequence[ReservationTerm]) -> tuple[AwsQuery, ...]:
    """One call per term, in any state: Karpenter itself sees active ones only (aws/karpenter-provider-aws v1.14.1
    pkg/providers/capacityreservation/types.go), so that it cannot say why one is not used.

    :param prefix: the calls' keys are ``<prefix>/<number of the term>``.
    """
    found = []
    for number, term in enumerate(terms):
        if term.id is not None:
            params: dict[str, Any] = {"CapacityReservationIds": [term.id]}
        else:
            filters = [
                {"Name": "tag-key", "Values": [key]} if value == "*" else {"Name": f"tag:{key}", "Values": [value]}
                for key, value in term.tags.items()
            ]
            if term.owner:
                filters.append({"Name": "owner-id", "Values": [term.owner]})
            params = {"Filters": filters}
        found.append(
            AwsQuery(
                f"{prefix}/{number}",
                "ec2",
                "describe_capacity_reservations",
                params,
                path="CapacityReservations",
                absent_codes=ABSENT,
            )
        )
    return tuple(found)


def each_once(items: Iterable[Mapping[str, Any]]) -> tuple[Reservation, ...]:
    """The reservations that several terms may have found, by id."""
    found = {str(item["CapacityReservationId"]): Reservation.of(item) for item in items}
    return tuple(found[key] for key in sorted(found))


def epoch(value: Any) -> float | None:
    """A moment of an answer of AWS as epoch seconds: a ``datetime``, or its text in JSON."""
    if value is None or value == "":
        return None
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def shown(moment: float | None) -> str:
    """A moment for people: ``2026-11-30 15:04 UTC``."""
    if moment is None:
        return "an unknown time"
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
