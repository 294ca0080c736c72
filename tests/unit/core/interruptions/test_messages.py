"""What the messages of EventBridge say; the formats are those of AWS's documentation."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from gpu_fleet.core.interruptions.messages import (
    DETAIL_TYPES,
    URGENCY,
    Irrelevant,
    Kind,
    Malformed,
    Notice,
    read_message,
)

INSTANCE = "i-1234567890abcdef0"
AT = datetime(2026, 11, 30, 5, 0, tzinfo=UTC).timestamp()


def event(kind: str, detail: Any, **changes: Any) -> dict[str, Any]:
    return {
        "version": "0",
        "id": "12345678-1234-1234-1234-123456789012",
        "detail-type": kind,
        "source": "aws.ec2",
        "account": "123456789012",
        "time": "2026-11-30T05:00:00Z",
        "region": "us-east-2",
        "resources": [f"arn:aws:ec2:us-east-2a:instance/{INSTANCE}"],
        "detail": detail,
    } | changes


def health(**detail: Any) -> dict[str, Any]:
    found = {
        "eventArn": "arn:aws:health:us-east-2::event/EC2/AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED/x",
        "service": "EC2",
        "eventTypeCode": "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED",
        "eventTypeCategory": "scheduledChange",
        "startTime": "Thu, 3 Dec 2026 07:00:00 GMT",
        "affectedEntities": [{"entityValue": INSTANCE}],
    }
    return event("AWS Health Event", found | detail, source="aws.health")


def only(value: dict[str, Any]) -> Notice:
    found = read_message(json.dumps(value))
    assert isinstance(found, tuple), found
    assert len(found) == 1
    return found[0]


SPOT = "EC2 Spot Instance Interruption Warning"
STATE = "EC2 Instance State-change Notification"
RESERVATION = "EC2 Capacity Reservation Instance Interruption Warning"
REBALANCE = "EC2 Instance Rebalance Recommendation"


@pytest.mark.parametrize(
    ("action", "deadline"), [("terminate", AT + 120), ("stop", AT + 120), ("hibernate", AT)], ids=str
)
def test_a_spot_warning_gives_two_minutes_unless_it_hibernates(action: str, deadline: float) -> None:
    found = only(event(SPOT, {"instance-id": INSTANCE, "instance-action": action}))
    assert found == Notice(Kind.SPOT, INSTANCE, AT, deadline, action, "12345678-1234-1234-1234-123456789012")


def test_a_rebalance_recommendation_has_no_deadline() -> None:
    found = only(event(REBALANCE, {"instance-id": INSTANCE}))
    assert (found.kind, found.deadline) == (Kind.REBALANCE, None)


def test_a_reservation_says_when_it_ends() -> None:
    detail = {"instance-id": INSTANCE, "instance-action": "terminate"}
    assert only(event(RESERVATION, detail | {"instance-termination-time": "2026-11-30T05:02:30Z"})).deadline == AT + 150
    assert only(event(RESERVATION, detail)).deadline == AT + 120


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("stopping", Kind.STOPPING),
        ("stopped", Kind.STOPPING),
        ("shutting-down", Kind.TERMINATING),
        ("terminated", Kind.TERMINATING),
    ],
)
def test_a_state_that_ends_an_instance_is_a_notice_without_time_left(state: str, kind: Kind) -> None:
    found = only(event(STATE, {"instance-id": INSTANCE, "state": state}))
    assert (found.kind, found.deadline, found.action) == (kind, AT, state)


@pytest.mark.parametrize("state", ["pending", "running", "another"])
def test_a_state_that_ends_nothing_concerns_nobody(state: str) -> None:
    assert isinstance(read_message(json.dumps(event(STATE, {"instance-id": INSTANCE, "state": state}))), Irrelevant)


def test_a_scheduled_change_is_a_notice_for_each_instance_once() -> None:
    others = ["i-0000000000000000a", f"arn:aws:ec2:us-east-2:1:instance/{INSTANCE}", INSTANCE, "vol-1", ""]
    found = read_message(json.dumps(health(affectedEntities=[{"entityValue": each} for each in others])))
    assert isinstance(found, tuple)
    assert [each.instance for each in found] == ["i-0000000000000000a", INSTANCE]
    assert {each.deadline for each in found} == {datetime(2026, 12, 3, 7, 0, tzinfo=UTC).timestamp()}
    assert {each.action for each in found} == {"AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED"}


@pytest.mark.parametrize(
    "detail",
    [{"service": "RDS"}, {"eventTypeCategory": "issue"}, {"statusCode": "closed"}, {"affectedEntities": []}],
    ids=str,
)
def test_other_health_events_concern_nobody(detail: dict[str, Any]) -> None:
    assert isinstance(read_message(json.dumps(health(**detail))), Irrelevant)


def test_an_unknown_detail_type_concerns_nobody() -> None:
    found = read_message(json.dumps(event("EC2 Something New", {"instance-id": INSTANCE})))
    assert isinstance(found, Irrelevant)
    assert "EC2 Something New" in found.message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "NotJson"),
        ("{", "NotJson"),
        ("[" * 100_000, "NotJson"),
        ("[]", "NotAnEvent"),
        ("null", "NotAnEvent"),
        ('"text"', "NotAnEvent"),
        ("{}", "NotAnEvent"),
        (json.dumps({"detail-type": SPOT}), "NotAnEvent"),
        (json.dumps(event(SPOT, None)), "UnknownShape"),
        (json.dumps(event(SPOT, {})), "UnknownShape"),
        (json.dumps(event(SPOT, {"instance-id": "i-../../x"})), "UnknownShape"),
        (json.dumps(event(SPOT, {"instance-id": INSTANCE}, time="soon")), "UnknownShape"),
        (json.dumps(event(SPOT, {"instance-id": INSTANCE}, time=None)), "UnknownShape"),
        (json.dumps(event(STATE, {"instance-id": INSTANCE})), "UnknownShape"),
        (json.dumps(health(affectedEntities="all")), "UnknownShape"),
        (json.dumps(health(startTime="soon")), "UnknownShape"),
    ],
)
def test_what_cannot_be_read_says_why(body: str, reason: str) -> None:
    found = read_message(body)
    assert isinstance(found, Malformed)
    assert found.reason == reason
    assert found.message


def test_a_notice_survives_its_json() -> None:
    found = only(event(SPOT, {"instance-id": INSTANCE, "instance-action": "terminate"}))
    assert Notice.from_json(json.loads(json.dumps(found.to_json()))) == found
    wrong: list[Any] = [{}, {"kind": "Nonsense", "instance": INSTANCE, "at": 1}, {"kind": "SpotInterruption"}, []]
    for broken in wrong:
        with pytest.raises(ValueError, match=r"."):
            Notice.from_json(broken)


def test_every_kind_has_its_place_in_the_order_of_urgency() -> None:
    assert sorted(URGENCY) == sorted(Kind)
    assert len(DETAIL_TYPES) == 5
