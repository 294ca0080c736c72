"""Capacity reservations as Karpenter sees them: what the node class has found, and how many instances are left.

After aws/karpenter-provider-aws v1.14.1: ``pkg/providers/capacityreservation`` (active ones only, those past their end
left out; the count of free instances is remembered between two looks, less what was launched),
``pkg/apis/v1/ec2nodeclass_status.go`` (``CapacityReservationFromEC2``: a block is *expiring* from 40 minutes before its
end), ``pkg/providers/instancetype/offering/reserved_capacity_resolver.go`` (an expiring one is no offering; the price
is the on-demand price divided by ten millions), ``pkg/cloudprovider/cloudprovider.go`` (labels) and
``pkg/providers/instance/filter/filter.go`` (other reservations before blocks, interruptible ones last).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws.client import Aws
from sandbox.settings import Clock

Object = dict[str, Any]

RESERVED = "reserved"
RESERVATION_ID = "karpenter.k8s.aws/capacity-reservation-id"
RESERVATION_TYPE = "karpenter.k8s.aws/capacity-reservation-type"
RESERVATION_INTERRUPTIBLE = "karpenter.k8s.aws/capacity-reservation-interruptible"
LABELS = (RESERVATION_ID, RESERVATION_TYPE, RESERVATION_INTERRUPTIBLE)
BLOCK = "capacity-block"
#: Simulated seconds before the end of a block from which on it is expiring.
EXPIRING = 2400.0
#: What the on-demand price is divided by.
PRICE_SHARE = 10_000_000.0
_ABSENT = "InvalidCapacityReservationId.NotFound"


@dataclass(frozen=True)
class Reservation:
    """An entry of ``status.capacityReservations``.

    :ivar expiring: EC2 is about to take a block back: nothing is launched there any more.
    """

    id: str
    instance_type: str
    zone: str
    kind: str
    interruptible: bool = False
    expiring: bool = False

    @property
    def labels(self) -> dict[str, str]:
        return {
            RESERVATION_ID: self.id,
            RESERVATION_TYPE: self.kind,
            RESERVATION_INTERRUPTIBLE: "true" if self.interruptible else "false",
        }

    @property
    def rank(self) -> int:
        """Smaller ones are launched into first."""
        return 2 if self.interruptible else 1 if self.kind == BLOCK else 0


def from_status(node_class: Object | None) -> tuple[Reservation, ...]:
    """The reservations that a class has found."""
    listed = ((node_class or {}).get("status") or {}).get("capacityReservations") or []
    return tuple(
        Reservation(
            each["id"],
            each["instanceType"],
            each["availabilityZone"],
            each.get("reservationType", "default"),
            bool(each.get("interruptible")),
            each.get("state") == "expiring",
        )
        for each in listed
    )


class ReservationProvider:
    """Looks them up, and remembers how many instances each has left."""

    def __init__(self, aws: Aws, clock: Clock) -> None:
        self._aws = aws
        self._clock = clock
        self._left: dict[str, int] = {}

    async def find(self, terms: Iterable[Mapping[str, Any]]) -> list[Object]:
        """For the terms of a class, as its status shows them."""
        found: dict[str, Object] = {}
        for term in terms:
            filters: list[Object] = [{"Name": "state", "Values": ["active"]}]
            params: Object = {}
            if term.get("id"):
                params["CapacityReservationIds"] = [term["id"]]
            else:
                if term.get("ownerID"):
                    filters.append({"Name": "owner-id", "Values": [term["ownerID"]]})
                if term.get("instanceMatchCriteria"):
                    filters.append({"Name": "instance-match-criteria", "Values": [term["instanceMatchCriteria"]]})
                for key, value in (term.get("tags") or {}).items():
                    filters.append(
                        {"Name": "tag-key", "Values": [key]}
                        if value == "*"
                        else {"Name": f"tag:{key}", "Values": [value]}
                    )
            try:
                answer = await self._aws.call("ec2", "describe_capacity_reservations", Filters=filters, **params)
            except ClientError as error:
                if error.response["Error"]["Code"] != _ABSENT:
                    raise
                continue
            found |= {each["CapacityReservationId"]: each for each in answer["CapacityReservations"]}
        now = time.time()
        living = [
            each for _, each in sorted(found.items()) if each.get("EndDate") is None or _epoch(each["EndDate"]) > now
        ]
        self._left |= {each["CapacityReservationId"]: int(each["AvailableInstanceCount"]) for each in living}
        return [self._shown(each, now) for each in living]

    def _shown(self, each: Object, now: float) -> Object:
        ends = None if each.get("EndDate") is None else _epoch(each["EndDate"])
        block = each.get("ReservationType") == BLOCK
        expiring = block and ends is not None and now >= ends - self._clock.real(EXPIRING)
        text = {} if ends is None else {"endTime": datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        return {
            "availabilityZone": each["AvailabilityZone"],
            **text,
            "id": each["CapacityReservationId"],
            "instanceMatchCriteria": each["InstanceMatchCriteria"],
            "instanceType": each["InstanceType"],
            "interruptible": bool(each.get("Interruptible")),
            "ownerID": each["OwnerId"],
            "reservationType": BLOCK if block else "default",
            "state": "expiring" if expiring else "active",
        }

    def left(self, identifier: str) -> int:
        return self._left.get(identifier, 0)

    def launched(self, identifier: str) -> None:
        self._left[identifier] = max(0, self.left(identifier) - 1)

    def terminated(self, identifier: str) -> None:
        if identifier in self._left:
            self._left[identifier] += 1

    def unavailable(self, identifier: str) -> None:
        self._left[identifier] = 0


def _epoch(moment: Any) -> float:
    return float(moment.timestamp())
