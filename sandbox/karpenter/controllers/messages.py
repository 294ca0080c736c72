"""What Karpenter makes of a message in its interruption queue.

After aws/karpenter-provider-aws v1.14.1 ``pkg/controllers/interruption``: ``parser.go``, ``messages/*``. A message is
known by its version, source and detail type together; every other one is a no-op. Fields are checked as Go's
``encoding/json`` does: one that is absent or null is empty, one of another type makes the whole message unreadable.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

Object = dict[str, Any]


class Kind(StrEnum):
    """``messages/types.go``."""

    REBALANCE_RECOMMENDATION = "rebalance_recommendation"
    SCHEDULED_CHANGE = "scheduled_change"
    SPOT_INTERRUPTION = "spot_interrupted"
    INSTANCE_STOPPED = "instance_stopped"
    INSTANCE_TERMINATED = "instance_terminated"
    CAPACITY_RESERVATION_INTERRUPTION = "capacity_reservation_interrupted"
    INSTANCE_STATUS = "instance_status"
    SYSTEM_STATUS = "system_status"
    EVENT_STATUS = "event_status"
    NO_OP = "no_op"


#: Reason and text of the event that each kind leaves on claim and node (``events/events.go``).
_UNHEALTHY = ("InstanceUnhealthy", "An unhealthy warning was triggered for the instance")
EVENTS = {
    Kind.REBALANCE_RECOMMENDATION: ("SpotRebalanceRecommendation", "Spot rebalance recommendation was triggered"),
    Kind.SCHEDULED_CHANGE: _UNHEALTHY,
    Kind.INSTANCE_STATUS: _UNHEALTHY,
    Kind.SYSTEM_STATUS: _UNHEALTHY,
    Kind.EVENT_STATUS: _UNHEALTHY,
    Kind.SPOT_INTERRUPTION: ("SpotInterrupted", "Spot interruption warning was triggered"),
    Kind.INSTANCE_STOPPED: ("InstanceStopping", "Instance is stopping"),
    Kind.INSTANCE_TERMINATED: ("InstanceTerminating", "Instance is terminating"),
    Kind.CAPACITY_RESERVATION_INTERRUPTION: (
        "CapacityReservationInstanceInterrupted",
        "Capacity Reservation interruption warning was triggered",
    ),
}
#: Those after which the claim is deleted (``utils.go``, ``actionForMessage``: CordonAndDrain, ForcefulTermination).
ENDING = frozenset(EVENTS) - {Kind.REBALANCE_RECOMMENDATION}
#: Those of them after which pods have no time left, since v1.12.2 (``ForcefulTermination``).
FORCEFUL = frozenset({Kind.INSTANCE_STATUS, Kind.SYSTEM_STATUS})
#: ``messages/statechange/parser.go``.
_STATES = frozenset({"stopping", "stopped", "shutting-down", "terminated"})
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_TEXTS = ("account", "detail-type", "id", "region", "source", "version")


class Unreadable(ValueError):
    """The body is not a message; the text says why."""


@dataclass(frozen=True)
class Message:
    """:ivar instances: ids of the instances that it is about."""

    kind: Kind
    instances: tuple[str, ...] = ()


_NOTHING = Message(Kind.NO_OP)


def parse(body: str) -> Message:
    """
    :raises Unreadable: it is logged, and the message is deleted all the same (``controller.go``).
    """
    if not body:
        return _NOTHING
    try:
        value = json.loads(body)
    except ValueError as error:
        raise Unreadable(f"unmarshalling the message as Metadata, {error}") from error
    if value is None:
        return _NOTHING
    if not isinstance(value, dict):
        raise Unreadable("unmarshalling the message as Metadata, it is not an object")
    version, source, detail_type = _metadata(value)
    reader = _READERS.get((version, source, detail_type))
    return reader(_object(value, "detail")) if reader else _NOTHING


def _metadata(value: Object) -> tuple[str, str, str]:
    texts = {field: _text(value, field) for field in _TEXTS}
    moment = _text(value, "time")
    if "time" in value and value["time"] is not None:
        try:
            if not _RFC3339.fullmatch(moment):
                raise ValueError(f"time {moment!r} is not RFC 3339")
            datetime.fromisoformat(moment)
        except ValueError as error:
            raise Unreadable(f"unmarshalling the message as Metadata, {error}") from error
    for resource in _list(value, "resources"):
        if not isinstance(resource, str):
            raise Unreadable("unmarshalling the message as Metadata, resources has an entry that is no text")
    return texts["version"], texts["source"], texts["detail-type"]


def _instance(detail: Object) -> tuple[str, ...]:
    return (_text(detail, "instance-id"),)


def _state_change(detail: Object) -> Message:
    instances, state = _instance(detail), _text(detail, "state")
    if state.lower() not in _STATES:
        return _NOTHING
    # Whether it is accepted does not depend on the case, what it means does (``statechange/model.go``).
    return Message(Kind.INSTANCE_STOPPED if state in ("stopping", "stopped") else Kind.INSTANCE_TERMINATED, instances)


def _spot(detail: Object) -> Message:
    _text(detail, "instance-action")
    return Message(Kind.SPOT_INTERRUPTION, _instance(detail))


def _rebalance(detail: Object) -> Message:
    return Message(Kind.REBALANCE_RECOMMENDATION, _instance(detail))


def _reservation(detail: Object) -> Message:
    _text(detail, "instance-action")
    return Message(Kind.CAPACITY_RESERVATION_INTERRUPTION, _instance(detail))


def _health(detail: Object) -> Message:
    for field in ("eventArn", "eventTypeCode", "startTime", "endTime"):
        _text(detail, field)
    entities = [_text(_entry(each, "affectedEntities"), "entityValue") for each in _list(detail, "affectedEntities")]
    if _text(detail, "service") != "EC2" or _text(detail, "eventTypeCategory") != "scheduledChange":
        return _NOTHING
    return Message(Kind.SCHEDULED_CHANGE, tuple(entities))


_READERS = {
    ("0", "aws.ec2", "EC2 Instance State-change Notification"): _state_change,
    ("0", "aws.ec2", "EC2 Spot Instance Interruption Warning"): _spot,
    ("0", "aws.health", "AWS Health Event"): _health,
    ("0", "aws.ec2", "EC2 Instance Rebalance Recommendation"): _rebalance,
    ("0", "aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning"): _reservation,
}


def _text(value: Object, field: str) -> str:
    found = value.get(field)
    if found is not None and not isinstance(found, str):
        raise Unreadable(f"parsing event message, {field} is not a text")
    return found or ""


def _object(value: Object, field: str) -> Object:
    return _entry(value.get(field), field)


def _entry(found: Any, field: str) -> Object:
    if found is not None and not isinstance(found, dict):
        raise Unreadable(f"parsing event message, {field} is not an object")
    return found or {}


def _list(value: Object, field: str) -> list[Any]:
    found = value.get(field)
    if found is not None and not isinstance(found, list):
        raise Unreadable(f"parsing event message, {field} is not a list")
    return found or []
