"""EventBridge's events about instances, and bodies that are none.

Formats: docs.aws.amazon.com/AWSEC2/latest/UserGuide (spot-instance-termination-notices, rebalance-recommendations,
monitoring-instance-state-changes, monitor-interruptible-cr) and docs.aws.amazon.com/health/latest/ug
(aws-health-events-eventbridge-schema).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from typing import Any

from sandbox.settings import Settings

Object = dict[str, Any]
#: Seconds between a warning and the instance's end; for spot and for interruptible capacity reservations.
NOTICE = 120.0
#: Days from an announcement of a scheduled change to its start, where none are given ("about two weeks").
AHEAD = timedelta(days=14)
#: How long a scheduled change may last.
LASTS = timedelta(hours=2)
RETIREMENT = "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED"
#: Words in AWS Health's type codes of scheduled changes, and what EC2 calls the event (EC2 User Guide, "Types of
#: scheduled events"); the first that fits.
_EVENT_CODES = (
    ("RETIREMENT", "instance-retirement"),
    ("SYSTEM_REBOOT", "system-reboot"),
    ("REBOOT", "instance-reboot"),
    ("STOP", "instance-stop"),
)
#: Characters; an event may have 256 KiB (EventBridge quotas).
_HUGE = 240 * 1024


class Kind(StrEnum):
    """What ``python -m sandbox interrupt --kind`` takes."""

    SPOT = "spot"
    REBALANCE = "rebalance"
    SCHEDULED = "scheduled"
    STATE = "state"
    RESERVATION = "reservation"


class Action(StrEnum):
    """What EC2 does with a spot instance that it interrupts (``instance-action``)."""

    TERMINATE = "terminate"
    STOP = "stop"
    HIBERNATE = "hibernate"


class Check(StrEnum):
    """EC2's status checks (EC2 User Guide, "Status checks for Amazon EC2 instances")."""

    INSTANCE = "instance"
    SYSTEM = "system"


class Malformed(StrEnum):
    """Bodies that are no interruption, or cannot be read."""

    NOT_JSON = "not-json"
    TRUNCATED = "truncated"
    BLANK = "blank"
    LIST = "list"
    EMPTY = "empty"
    NOT_AN_EVENT = "not-an-event"
    NO_DETAIL = "no-detail"
    WRONG_TYPES = "wrong-types"
    UNKNOWN_TYPE = "unknown-type"
    HUGE = "huge"


DETAIL_TYPES = {
    Kind.SPOT: "EC2 Spot Instance Interruption Warning",
    Kind.REBALANCE: "EC2 Instance Rebalance Recommendation",
    Kind.SCHEDULED: "AWS Health Event",
    Kind.STATE: "EC2 Instance State-change Notification",
    Kind.RESERVATION: "EC2 Capacity Reservation Instance Interruption Warning",
}


def message(
    kind: Kind,
    instance: str,
    zone: str,
    settings: Settings,
    now: datetime,
    *,
    action: Action = Action.TERMINATE,
    state: str = "stopping",
    ends: datetime | None = None,
) -> Object:
    """The event about one instance.

    :param zone: the instance's availability zone (a spot warning's ARN names it).
    :param action: of a spot warning.
    :param state: of a state change.
    :param ends: when a reservation's instance is terminated.
    """
    if kind is Kind.SCHEDULED:
        return scheduled_change([instance], settings, now)
    event = _envelope(kind, settings, now)
    event["resources"] = [f"arn:aws:ec2:{settings.region}:{settings.account}:instance/{instance}"]
    detail = event["detail"] = {"instance-id": instance}
    match kind:
        case Kind.SPOT:
            # 'The ARN format of the Spot Instance interruption event' is another one.
            event["resources"] = [f"arn:aws:ec2:{zone}:instance/{instance}"]
            detail["instance-action"] = str(action)
        case Kind.STATE:
            detail["state"] = state
        case Kind.RESERVATION:
            detail["instance-action"] = "terminate"
            detail["instance-termination-time"] = _stamp(ends or now + timedelta(seconds=NOTICE))
            detail["azId"] = zone_id(zone)
    return event


def scheduled_change(
    instances: Iterable[str],
    settings: Settings,
    now: datetime,
    starts: datetime | None = None,
    code: str = RETIREMENT,
) -> Object:
    """AWS Health's event about a change that is planned for some instances; its times are those of HTTP (RFC 1123)."""
    listed = list(instances)
    begin = starts or now + AHEAD
    event = _envelope(Kind.SCHEDULED, settings, now)
    event["source"] = "aws.health"
    event["resources"] = listed
    number = uuid.uuid4().hex
    event["detail"] = {
        "eventArn": f"arn:aws:health:{settings.region}::event/EC2/{code}/{code}_{number[:12]}",
        "service": "EC2",
        "eventTypeCode": code,
        "eventTypeCategory": "scheduledChange",
        "eventScopeCode": "ACCOUNT_SPECIFIC",
        "communicationId": f"{number}-1",
        "startTime": _http_date(begin),
        "endTime": _http_date(begin + LASTS),
        "lastUpdatedTime": _http_date(now),
        "statusCode": "upcoming",
        "eventRegion": settings.region,
        "eventDescription": [{"language": "en_US", "latestDescription": "A change of these instances is scheduled."}],
        "affectedEntities": [
            {"entityValue": each, "status": "PENDING", "lastUpdatedTime": _http_date(now)} for each in listed
        ],
        "affectedAccount": settings.account,
        "page": "1",
        "totalPages": "1",
    }
    return event


def event_code(code: str) -> str:
    """EC2's code of the scheduled event that AWS Health announces with this type code."""
    return next((shown for word, shown in _EVENT_CODES if word in code), "system-maintenance")


def malformed(variant: Malformed, settings: Settings, now: datetime, instance: str = "i-0badbadbadbadbad0") -> str:
    """The body of a message that no reader of the queue can use."""
    event = message(Kind.SPOT, instance, f"{settings.region}a", settings, now)
    text = json.dumps(event)
    match variant:
        case Malformed.NOT_JSON:
            return "instance " + instance + " is going to be interrupted"
        case Malformed.TRUNCATED:
            return text[: len(text) // 2]
        case Malformed.BLANK:  # SQS refuses an empty body
            return " "
        case Malformed.LIST:
            return json.dumps([event])
        case Malformed.EMPTY:
            return "{}"
        case Malformed.NOT_AN_EVENT:
            return json.dumps({"Type": "Notification", "Message": text})  # as SNS would wrap it
        case Malformed.NO_DETAIL:
            return json.dumps({key: value for key, value in event.items() if key != "detail"})
        case Malformed.WRONG_TYPES:
            return json.dumps({**event, "time": 17, "detail": {"instance-id": {"id": instance}}})
        case Malformed.UNKNOWN_TYPE:
            return json.dumps({**event, "detail-type": "EC2 Instance Mood Change"})
        case Malformed.HUGE:
            return json.dumps({**event, "detail": {"instance-id": "i-" + "0" * _HUGE}})


def zone_id(zone: str) -> str:
    """``us-west-2a`` → ``usw2-az1``, as moto maps them."""
    area, direction, number = zone[:-1].split("-")
    short = {"northeast": "ne", "southeast": "se", "northwest": "nw", "southwest": "sw"}.get(direction, direction[0])
    return f"{area}{short}{number}-az{ord(zone[-1]) - ord('a') + 1}"


def _envelope(kind: Kind, settings: Settings, now: datetime) -> Object:
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": DETAIL_TYPES[kind],
        "source": "aws.ec2",
        "account": settings.account,
        "time": _stamp(now),
        "region": settings.region,
        "resources": [],
        "detail": {},
    }


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _http_date(moment: datetime) -> str:
    return format_datetime(moment.astimezone(UTC), usegmt=True)
