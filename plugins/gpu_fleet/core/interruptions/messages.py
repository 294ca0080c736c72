"""What EventBridge says about instances, read strictly.

Formats: EC2 User Guide, "Spot Instance interruption notices", "EC2 instance rebalance recommendations", "Monitor state
change events" and "Monitor interruptible Capacity Reservations with EventBridge and CloudTrail"; AWS Health User Guide,
"AWS Health events Amazon EventBridge schema". Karpenter reads the same five (aws/karpenter-provider-aws v1.14.1
``pkg/controllers/interruption/messages``).

A message is one of three things: a notice about instances, something that concerns nobody (a state that follows from
what somebody did, another service), or unreadable. An unreadable one is never dropped: who reads the queue puts it into
the dead-letter queue with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

#: Seconds from a notice to the end of the instance (EC2 User Guide, "Spot Instance interruption notices").
SPOT_NOTICE_S = 120.0
_INSTANCE = re.compile(r"i-[0-9a-f]{8,32}", re.ASCII)
_MOST_INSTANCES = 1000


class Kind(StrEnum):
    """Why a node is in danger. The order is that of urgency, see :data:`URGENCY`."""

    SPOT = "SpotInterruption"
    RESERVATION = "CapacityReservationInterruption"
    STOPPING = "InstanceStopping"
    TERMINATING = "InstanceTerminating"
    SCHEDULED = "ScheduledChange"
    REBALANCE = "RebalanceRecommendation"


#: The most urgent first: of two notices about an instance the more urgent one counts.
URGENCY = (Kind.TERMINATING, Kind.STOPPING, Kind.SPOT, Kind.RESERVATION, Kind.SCHEDULED, Kind.REBALANCE)

#: These come before the instance's end, which whoever drains the node may bring about as soon as it is empty.
ANNOUNCED = frozenset({Kind.SPOT, Kind.RESERVATION, Kind.SCHEDULED})


@dataclass(frozen=True)
class Notice:
    """One instance is going to be taken, or may be.

    :ivar instance: EC2 instance id.
    :ivar at: when EC2 announced it, epoch seconds (the event's ``time``).
    :ivar deadline: when the instance ends, epoch seconds; ``None`` if that is unknown: for a rebalance recommendation
        there is no end, and of an instance that ends already nothing is left to wait for.
    :ivar action: what EC2 does with the instance (``terminate``, ``stop``, ``hibernate``), or the Health event's type
        code; empty if the message does not say.
    :ivar event: the event's id, equal in all its copies.
    """

    kind: Kind
    instance: str
    at: float
    deadline: float | None = None
    action: str = ""
    event: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "instance": self.instance,
            "at": self.at,
            "deadline": self.deadline,
            "action": self.action,
            "event": self.event,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Notice:
        """
        :raises ValueError: if the mapping is no notice.
        """
        try:
            deadline = value.get("deadline")
            return cls(
                kind=Kind(value["kind"]),
                instance=str(value["instance"]),
                at=float(value["at"]),
                deadline=None if deadline is None else float(deadline),
                action=str(value.get("action") or ""),
                event=str(value.get("event") or ""),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no notice: {error!r}") from error


@dataclass(frozen=True)
class Malformed:
    """A body that is no event of EventBridge, or not of the documented shape.

    :ivar reason: CamelCase.
    :ivar message: what is wrong, in words, without the body.
    """

    reason: str
    message: str


@dataclass(frozen=True)
class Irrelevant:
    """A well-formed event that is about no end of an instance."""

    message: str


Read = tuple[Notice, ...] | Malformed | Irrelevant


class _Shape(ValueError):
    """Part of the event is missing or of another type."""


def read_message(body: str) -> Read:
    """What a message's body says. Total: never raises."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return Malformed("NotJson", "the body is not JSON")
    if not isinstance(value, Mapping):
        return Malformed("NotAnEvent", f"the body is a JSON {type(value).__name__}, not an EventBridge event")
    kind = value.get("detail-type")
    if not isinstance(kind, str) or "source" not in value:
        return Malformed("NotAnEvent", "the body has no detail-type and source, so it is no EventBridge event")
    reader = _READERS.get(kind)
    if reader is None:
        return Irrelevant(f"detail-type {kind[:100]!r} is none that this package reads")
    try:
        detail = value.get("detail")
        if not isinstance(detail, Mapping):
            raise _Shape("detail is no mapping")
        return reader(value, detail)
    except _Shape as error:
        return Malformed("UnknownShape", f"{kind}: {error}")


def _spot(event: Mapping[str, Any], detail: Mapping[str, Any]) -> Read:
    action = str(detail.get("instance-action") or "terminate")
    at = _time(event)
    # A hibernation begins at once (EC2 User Guide, "Hibernate interrupted Spot Instances").
    return (
        _notice(event, Kind.SPOT, _instance(detail), at, at if action == "hibernate" else at + SPOT_NOTICE_S, action),
    )


def _rebalance(event: Mapping[str, Any], detail: Mapping[str, Any]) -> Read:
    return (_notice(event, Kind.REBALANCE, _instance(detail), _time(event), None),)


def _reservation(event: Mapping[str, Any], detail: Mapping[str, Any]) -> Read:
    at = _time(event)
    end = _moment(detail.get("instance-termination-time"))
    action = str(detail.get("instance-action") or "terminate")
    return (
        _notice(event, Kind.RESERVATION, _instance(detail), at, at + SPOT_NOTICE_S if end is None else end, action),
    )


_STATES = {
    "stopping": Kind.STOPPING,
    "stopped": Kind.STOPPING,
    "shutting-down": Kind.TERMINATING,
    "terminated": Kind.TERMINATING,
}


def _state(event: Mapping[str, Any], detail: Mapping[str, Any]) -> Read:
    state = detail.get("state")
    if not isinstance(state, str):
        raise _Shape("detail.state is missing")
    kind = _STATES.get(state)
    if kind is None:
        return Irrelevant(f"instance state {state[:40]!r} ends no instance")
    at = _time(event)
    return (_notice(event, kind, _instance(detail), at, at, state),)


def _health(event: Mapping[str, Any], detail: Mapping[str, Any]) -> Read:
    if detail.get("service") != "EC2" or detail.get("eventTypeCategory") != "scheduledChange":
        return Irrelevant("a Health event about no scheduled change of EC2")
    if detail.get("statusCode") == "closed":
        return Irrelevant("a scheduled change that is over or cancelled")
    entities = detail.get("affectedEntities")
    if not isinstance(entities, list):
        raise _Shape("detail.affectedEntities is no list")
    # An id; where AWS writes the ARN instead, its last part.
    names = [str(each.get("entityValue") or "").rpartition("/")[2] for each in entities if isinstance(each, Mapping)]
    instances = sorted({name for name in names if _INSTANCE.fullmatch(name)})
    if not instances:
        return Irrelevant("a scheduled change that names no instance")
    start = detail.get("startTime")
    deadline = _moment(start) if start else None
    if start and deadline is None:
        raise _Shape("detail.startTime is no time")
    code = str(detail.get("eventTypeCode") or "")
    at = _time(event)
    return tuple(_notice(event, Kind.SCHEDULED, name, at, deadline, code) for name in instances[:_MOST_INSTANCES])


_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Read]] = {
    "EC2 Spot Instance Interruption Warning": _spot,
    "EC2 Instance Rebalance Recommendation": _rebalance,
    "EC2 Instance State-change Notification": _state,
    "EC2 Capacity Reservation Instance Interruption Warning": _reservation,
    "AWS Health Event": _health,
}

#: The detail-types that the queue's rules deliver.
DETAIL_TYPES = tuple(_READERS)


def _notice(
    event: Mapping[str, Any], kind: Kind, instance: str, at: float, deadline: float | None, action: str = ""
) -> Notice:
    return Notice(kind, instance, at, deadline, action[:100], str(event.get("id") or "")[:100])


def _instance(detail: Mapping[str, Any]) -> str:
    name = detail.get("instance-id")
    if not isinstance(name, str) or not _INSTANCE.fullmatch(name):
        raise _Shape("detail.instance-id is no instance id")
    return name


def _time(event: Mapping[str, Any]) -> float:
    moment = _moment(event.get("time"))
    if moment is None:
        raise _Shape("time is no time")
    return moment


def _moment(text: object) -> float | None:
    """Epoch seconds of ``2026-11-30T05:00:00Z`` (EventBridge) or ``Mon, 30 Nov 2026 05:00:00 GMT`` (Health)."""
    if not isinstance(text, str) or len(text) > 64:
        return None
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(text)
            return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None
