"""Events as AWS documents them; the samples are the documentation's, with this test's ids."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from sandbox.aws.notices import Action, Kind, Malformed, malformed, message, scheduled_change, zone_id
from sandbox.settings import Settings

SETTINGS = Settings(state_dir=Path("unused"), region="us-east-2")
NOW = datetime(2026, 3, 4, 5, 6, 7, 890, tzinfo=UTC)
INSTANCE = "i-1234567890abcdef0"
ARN = f"arn:aws:ec2:us-east-2:123456789012:instance/{INSTANCE}"


def envelope(detail_type: str, resource: str, detail: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "0",
        "detail-type": detail_type,
        "source": "aws.ec2",
        "account": "123456789012",
        "time": "2026-03-04T05:06:07Z",
        "region": "us-east-2",
        "resources": [resource],
        "detail": detail,
    }


@pytest.mark.parametrize(
    ("event", "sample"),
    [
        # EC2 User Guide, 'Spot Instance interruption notices'
        (
            message(Kind.SPOT, INSTANCE, "us-east-2a", SETTINGS, NOW),
            envelope(
                "EC2 Spot Instance Interruption Warning",
                f"arn:aws:ec2:us-east-2a:instance/{INSTANCE}",
                {"instance-id": INSTANCE, "instance-action": "terminate"},
            ),
        ),
        (
            message(Kind.SPOT, INSTANCE, "us-east-2a", SETTINGS, NOW, action=Action.HIBERNATE),
            envelope(
                "EC2 Spot Instance Interruption Warning",
                f"arn:aws:ec2:us-east-2a:instance/{INSTANCE}",
                {"instance-id": INSTANCE, "instance-action": "hibernate"},
            ),
        ),
        # EC2 User Guide, 'EC2 instance rebalance recommendations'
        (
            message(Kind.REBALANCE, INSTANCE, "us-east-2a", SETTINGS, NOW),
            envelope("EC2 Instance Rebalance Recommendation", ARN, {"instance-id": INSTANCE}),
        ),
        # EC2 User Guide, 'State change events for Amazon EC2 instances'
        (
            message(Kind.STATE, INSTANCE, "us-east-2a", SETTINGS, NOW, state="shutting-down"),
            envelope(
                "EC2 Instance State-change Notification", ARN, {"instance-id": INSTANCE, "state": "shutting-down"}
            ),
        ),
        # EC2 User Guide, 'Monitor interruptible Capacity Reservations with EventBridge and CloudTrail'
        (
            message(Kind.RESERVATION, INSTANCE, "us-east-2a", SETTINGS, NOW),
            envelope(
                "EC2 Capacity Reservation Instance Interruption Warning",
                ARN,
                {
                    "instance-id": INSTANCE,
                    "instance-action": "terminate",
                    "instance-termination-time": "2026-03-04T05:08:07Z",
                    "azId": "use2-az1",
                },
            ),
        ),
    ],
)
def test_events_of_ec2(event: dict[str, Any], sample: dict[str, Any]) -> None:
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", event.pop("id"))
    assert event == sample


def test_an_event_of_aws_health_names_all_instances_and_when_it_begins() -> None:
    """AWS Health User Guide, 'Reference: AWS Health events Amazon EventBridge schema': the required fields."""
    event = scheduled_change([INSTANCE, "i-2"], SETTINGS, NOW, NOW + timedelta(days=3))
    assert (event["version"], event["source"], event["detail-type"]) == ("0", "aws.health", "AWS Health Event")
    assert event["resources"] == [INSTANCE, "i-2"]
    detail = event["detail"]
    code = "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED"
    assert re.fullmatch(rf"arn:aws:health:us-east-2::event/EC2/{code}/{code}_[0-9a-f]+", detail["eventArn"])
    assert {key: detail[key] for key in ("service", "eventTypeCode", "eventTypeCategory", "eventScopeCode")} == {
        "service": "EC2",
        "eventTypeCode": code,
        "eventTypeCategory": "scheduledChange",
        "eventScopeCode": "ACCOUNT_SPECIFIC",
    }
    assert detail["startTime"] == "Sat, 07 Mar 2026 05:06:07 GMT"
    assert parsedate_to_datetime(detail["endTime"]) > parsedate_to_datetime(detail["startTime"])
    assert [each["entityValue"] for each in detail["affectedEntities"]] == [INSTANCE, "i-2"]
    assert (detail["affectedAccount"], detail["eventRegion"]) == ("123456789012", "us-east-2")
    assert (detail["page"], detail["totalPages"], detail["statusCode"]) == ("1", "1", "upcoming")
    assert detail["eventDescription"][0]["language"] == "en_US"


def test_a_scheduled_change_is_announced_two_weeks_ahead_unless_told_otherwise() -> None:
    detail = scheduled_change([INSTANCE], SETTINGS, NOW, code="AWS_EC2_INSTANCE_STOP_SCHEDULED")["detail"]
    assert detail["startTime"] == "Wed, 18 Mar 2026 05:06:07 GMT"
    assert detail["eventTypeCode"] == "AWS_EC2_INSTANCE_STOP_SCHEDULED"


@pytest.mark.parametrize(
    ("zone", "identifier"),
    [
        ("us-west-2a", "usw2-az1"),
        ("us-east-1c", "use1-az3"),
        ("eu-central-1b", "euc1-az2"),
        ("ap-northeast-1a", "apne1-az1"),
        ("ap-southeast-2c", "apse2-az3"),
    ],
)
def test_ids_of_zones(zone: str, identifier: str) -> None:
    """As in docs.aws.amazon.com/ram/latest/userguide/working-with-az-ids.html; which letter has which differs."""
    assert zone_id(zone) == identifier


def _usable(body: str) -> bool:
    """Whether a careful reader finds a known event with an instance id in it."""
    try:
        event = json.loads(body)
        instance = event["detail"]["instance-id"]
        known = event["detail-type"] == "EC2 Spot Instance Interruption Warning" and event["source"] == "aws.ec2"
    except (ValueError, KeyError, TypeError):
        return False
    return known and isinstance(instance, str) and bool(re.fullmatch(r"i-[0-9a-f]{8,17}", instance))


@pytest.mark.parametrize("variant", list(Malformed))
def test_malformed_bodies_are_of_no_use_and_fit_into_a_message(variant: Malformed) -> None:
    body = malformed(variant, SETTINGS, NOW)
    assert not _usable(body)
    assert 0 < len(body.encode()) <= 256 * 1024


def test_a_sound_body_is_of_use() -> None:
    assert _usable(json.dumps(message(Kind.SPOT, INSTANCE, "us-east-2a", SETTINGS, NOW)))
