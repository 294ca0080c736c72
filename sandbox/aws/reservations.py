"""Capacity reservations and Capacity Blocks for moto's EC2, which has none; in moto's process only.

After the Amazon EC2 User Guide (Capacity Reservations; Capacity Blocks for ML) and the Amazon EC2 API
(``DescribeCapacityReservations``, ``RunInstances``):

* a block is ``payment-pending`` or ``scheduled`` until it begins, and shows no instances until then; how many come is
  in a tag ('View Capacity Blocks');
* an instance that is launched into a reservation takes one of its places until it is terminated; a stopping or
  terminating one still does ('Launch instances using Capacity Blocks');
* EC2 begins to terminate the instances of a block 30 minutes before its end, 60 of UltraServers; those of another
  reservation go on as on-demand instances when it ends;
* a launch into one that is full is refused with ``ReservationCapacityExceeded``, and into one that is not active, of
  another type, zone or platform with ``InvalidParameterCombination`` or ``InvalidCapacityReservationState``
  (the texts are guesses: the codes alone are documented).

Moments are real ones, since programs compare them with the clock; only EC2's lead before the end follows the speed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

BLOCK, DEFAULT = "capacity-block", "default"
#: Simulated seconds before its end at which EC2 begins to terminate the instances of a block; of UltraServers twice.
RECLAIM_S = 1800.0
COMING_TAG = "aws:ec2capacityreservation:incrementalRequestedQuantity"
_ULTRASERVERS = ("p6e-gb200", "p6e-gb300")
_GONE = ("terminated",)
_LOOK_S = 0.2


@dataclass(frozen=True)
class Reservation:
    """
    :ivar starts: epoch seconds.
    :ivar ends: epoch seconds; ``None``: when it is cancelled.
    :ivar forced: the state that it has whatever the time is; empty: what follows from the time.
    :ivar visible: an account other than the owner's sees it only if it is shared.
    """

    id: str
    instance_type: str
    zone: str
    count: int
    kind: str = DEFAULT
    starts: float = 0.0
    ends: float | None = None
    owner: str = ""
    platform: str = "Linux/UNIX"
    tenancy: str = "default"
    match: str = "targeted"
    interruptible: bool = False
    forced: str = ""
    visible: bool = True
    tags: dict[str, str] = field(default_factory=dict)

    def state(self, now: float) -> str:
        if self.forced:
            return self.forced
        if now < self.starts:
            return "scheduled"
        return "expired" if self.ends is not None and now >= self.ends else "active"


class Reservations:
    """The account's reservations, and the instances in them.

    :param speed: of the sandbox; EC2's lead before the end of a block is divided by it.
    :param state_of: instance id -> its state; ``terminated`` for one that moto has forgotten.
    :param take: EC2 takes these instances back.
    """

    def __init__(
        self, speed: float, state_of: Callable[[str], str], take: Callable[[list[str]], None], account: str
    ) -> None:
        self._speed = speed
        self._state_of = state_of
        self._take = take
        self._account = account
        self._lock = threading.RLock()
        self._known: dict[str, Reservation] = {}
        self._inside: dict[str, str] = {}
        self._number = 0

    # --- what the sandbox asks ---------------------------------------------------------------------------------------

    def add(self, body: dict[str, Any]) -> dict[str, Any]:
        """Reserve capacity; fields as :mod:`sandbox.cloud.reserving` checks them."""
        now = time.time()
        with self._lock:
            self._number += 1
            made = Reservation(
                id=body.get("id") or f"cr-{self._number:017x}",
                instance_type=body["instanceType"],
                zone=body["zone"],
                count=body["count"],
                kind=body.get("type") or DEFAULT,
                starts=now + float(body.get("startsIn") or 0.0),
                ends=None if body.get("endsIn") is None else now + float(body["endsIn"]),
                owner=body.get("owner") or self._account,
                platform=body.get("platform") or "Linux/UNIX",
                tenancy=body.get("tenancy") or "default",
                match=body.get("match") or "targeted",
                interruptible=bool(body.get("interruptible")),
                forced=body.get("state") or "",
                visible=bool(body.get("shared", True)),
                tags=dict(body.get("tags") or {}),
            )
            self._known[made.id] = made
            return self.shown(made, now)

    def change(self, identifier: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Extend, cancel, resize; ``None`` if there is no such reservation."""
        now = time.time()
        with self._lock:
            found = self._known.get(identifier)
            if found is None:
                return None
            fields: dict[str, Any] = {}
            if "endsIn" in body:
                fields["ends"] = None if body["endsIn"] is None else now + float(body["endsIn"])
            if "startsIn" in body:
                fields["starts"] = now + float(body["startsIn"])
            if "count" in body:
                fields["count"] = body["count"]
            if "state" in body:
                fields["forced"] = body["state"]
            self._known[identifier] = found = replace(found, **fields)
            return self.shown(found, now)

    def listed(self) -> list[dict[str, Any]]:
        now = time.time()
        with self._lock:
            return [
                {**self.shown(each, now), "Instances": sorted(self._instances(each.id))}
                for _, each in sorted(self._known.items())
            ]

    # --- what EC2 does -----------------------------------------------------------------------------------------------

    def find(self, identifiers: Iterable[str], filters: dict[str, list[str]]) -> tuple[list[dict[str, Any]], list[str]]:
        """As ``DescribeCapacityReservations``: the items, and the ids that do not exist for this account."""
        now, wanted = time.time(), list(identifiers)
        with self._lock:
            seen = {each.id: each for each in self._known.values() if each.visible or each.owner == self._account}
            missing = [each for each in wanted if each not in seen]
            chosen = [seen[each] for each in wanted if each in seen] if wanted else list(seen.values())
            return [self.shown(each, now) for each in chosen if _meets(each, filters, now)], missing

    def shown(self, each: Reservation, now: float) -> dict[str, Any]:
        state = each.state(now)
        coming = each.kind == BLOCK and state in ("scheduled", "payment-pending")
        tags = {**each.tags, **({COMING_TAG: str(each.count)} if coming else {})}
        free = max(0, each.count - len(self._instances(each.id))) if state == "active" else 0
        ends: dict[str, Any] = {} if each.ends is None else {"EndDate": _text(each.ends)}
        return {
            "CapacityReservationId": each.id,
            "OwnerId": each.owner,
            "CapacityReservationArn": f"arn:aws:ec2:{each.zone[:-1]}:{each.owner}:capacity-reservation/{each.id}",
            "InstanceType": each.instance_type,
            "InstancePlatform": each.platform,
            "AvailabilityZone": each.zone,
            "Tenancy": each.tenancy,
            "TotalInstanceCount": 0 if coming else each.count,
            "AvailableInstanceCount": free,
            "EbsOptimized": True,
            "EphemeralStorage": False,
            "State": state,
            "StartDate": _text(each.starts),
            **ends,
            "EndDateType": "unlimited" if each.ends is None else "limited",
            "InstanceMatchCriteria": each.match,
            "CreateDate": _text(each.starts),
            "ReservationType": each.kind,
            "Interruptible": each.interruptible,
            "Tags": [{"Key": key, "Value": value} for key, value in sorted(tags.items())],
        }

    def refusal(self, identifier: str, instance_type: str, zone: str) -> tuple[str, str] | None:
        """Why EC2 launches no instance into a reservation: code and message."""
        now = time.time()
        with self._lock:
            found = self._known.get(identifier)
            if found is None or not (found.visible or found.owner == self._account):
                return "InvalidCapacityReservationId.NotFound", f"The capacity reservation {identifier} does not exist"
            if found.state(now) != "active":
                text = f"The capacity reservation {identifier} is {found.state(now)}"
                return "InvalidCapacityReservationState", text
            if (found.instance_type, found.zone) != (instance_type, zone):
                text = f"{identifier} is for {found.instance_type} in {found.zone}"
                return "InvalidParameterCombination", text
            if len(self._instances(identifier)) >= found.count:
                text = "The requested reservation does not have sufficient compatible and available capacity"
                return "ReservationCapacityExceeded", f"{text} for this request"
        return None

    def launched(self, identifier: str, instance: str) -> None:
        with self._lock:
            self._inside[instance] = identifier

    def of_instance(self, instance: str) -> str | None:
        """The reservation that an instance is in; an ended one of the default kind holds no instance any more."""
        now = time.time()
        with self._lock:
            found = self._known.get(self._inside.get(instance, ""))
            if found is None or (found.kind == DEFAULT and found.state(now) != "active"):
                return None
            return found.id

    def _instances(self, identifier: str) -> list[str]:
        return [
            instance
            for instance, inside in self._inside.items()
            if inside == identifier and self._state_of(instance) not in _GONE
        ]

    # --- the end of blocks -------------------------------------------------------------------------------------------

    def take_ending(self) -> list[str]:
        """EC2 terminates the instances of blocks that end soon; their ids."""
        now = time.time()
        with self._lock:
            due = [
                instance
                for each in self._known.values()
                if each.kind == BLOCK and each.ends is not None and now >= each.ends - self.lead(each)
                for instance in self._instances(each.id)
                if self._state_of(instance) in ("pending", "running")
            ]
        if due:
            self._take(due)
        return due

    def lead(self, each: Reservation) -> float:
        """Real seconds before the end of a block at which EC2 begins to terminate."""
        times = 2.0 if each.instance_type.partition(".")[0] in _ULTRASERVERS else 1.0
        return RECLAIM_S * times / self._speed

    def watch(self) -> None:
        """Look for blocks that end, for as long as the process lives."""

        def run() -> None:
            while True:
                time.sleep(_LOOK_S)
                self.take_ending()

        threading.Thread(target=run, name="capacity-blocks", daemon=True).start()


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _meets(each: Reservation, filters: dict[str, list[str]], now: float) -> bool:
    facts = {
        "state": each.state(now),
        "owner-id": each.owner,
        "instance-type": each.instance_type,
        "availability-zone": each.zone,
        "instance-match-criteria": each.match,
        "reservation-type": each.kind,
        "tenancy": each.tenancy,
    }
    for name, values in filters.items():
        if name == "tag-key":
            met = any(key in each.tags for key in values)
        elif name.startswith("tag:"):
            met = each.tags.get(name.removeprefix("tag:")) in values
        else:
            met = facts.get(name) in values
        if not met:
            return False
    return True


def serve(reservations: Reservations) -> None:
    """Teaches moto's EC2 the calls: ``DescribeCapacityReservations``, and ``RunInstances`` into a reservation."""
    from moto.core.responses import ActionResult
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models.instances import Instance
    from moto.ec2.responses import EC2Response
    from moto.ec2.responses.instances import InstanceResponse

    def describe(self: Any) -> ActionResult:
        self.error_on_dryrun()
        wanted = self._get_param("CapacityReservationIds", [])
        found, missing = reservations.find(wanted, self._filters_from_querystring())
        if missing:
            text = f"The capacity reservation ID(s) '{', '.join(missing)}' do not exist"
            raise EC2ClientError("InvalidCapacityReservationId.NotFound", text)
        return ActionResult({"CapacityReservations": found})

    run = InstanceResponse.run_instances

    def run_into(self: Any) -> Any:
        target = self._get_param("CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId")
        if target:
            subnet = self.ec2_backend.get_subnet(self._get_param("SubnetId"))
            refusal = reservations.refusal(target, self._get_param("InstanceType"), subnet.availability_zone)
            if refusal is not None:
                raise EC2ClientError(*refusal)
        answer = run(self)
        if target:
            for instance in answer.result.instances:
                reservations.launched(target, instance.id)
        return answer

    EC2Response.describe_capacity_reservations = describe
    InstanceResponse.run_instances = run_into
    # Read by moto's serializer, as every member of the API's shape.
    Instance.capacity_reservation_id = property(lambda self: reservations.of_instance(self.id))
