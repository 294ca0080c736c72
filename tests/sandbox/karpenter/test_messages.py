"""What Karpenter reads out of a message in its queue (aws/karpenter-provider-aws v1.14.1, interruption/messages)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox.karpenter.controllers.messages import ENDING, EVENTS, Kind, Unreadable, parse

STATE = "EC2 Instance State-change Notification"
SPOT = "EC2 Spot Instance Interruption Warning"
HEALTH = "AWS Health Event"


def body(detail_type: str, detail: Any, **more: Any) -> str:
    source = "aws.health" if detail_type == HEALTH else "aws.ec2"
    return json.dumps({"version": "0", "source": source, "detail-type": detail_type, "detail": detail} | more)


def change(**more: Any) -> dict[str, Any]:
    entities = [{"entityValue": "i-1"}, {"entityValue": "i-2"}]
    return {"service": "EC2", "eventTypeCategory": "scheduledChange", "affectedEntities": entities} | more


@pytest.mark.parametrize(
    ("text", "kind", "instances"),
    [
        (body(SPOT, {"instance-id": "i-1", "instance-action": "terminate"}), Kind.SPOT_INTERRUPTION, ("i-1",)),
        (
            body("EC2 Instance Rebalance Recommendation", {"instance-id": "i-1"}),
            Kind.REBALANCE_RECOMMENDATION,
            ("i-1",),
        ),
        (body(STATE, {"instance-id": "i-1", "state": "stopping"}), Kind.INSTANCE_STOPPED, ("i-1",)),
        (body(STATE, {"instance-id": "i-1", "state": "stopped"}), Kind.INSTANCE_STOPPED, ("i-1",)),
        (body(STATE, {"instance-id": "i-1", "state": "shutting-down"}), Kind.INSTANCE_TERMINATED, ("i-1",)),
        (body(STATE, {"instance-id": "i-1", "state": "terminated"}), Kind.INSTANCE_TERMINATED, ("i-1",)),
        (body(STATE, {"instance-id": "i-1", "state": "STOPPED"}), Kind.INSTANCE_TERMINATED, ("i-1",)),
        (body(HEALTH, change()), Kind.SCHEDULED_CHANGE, ("i-1", "i-2")),
        (
            body("EC2 Capacity Reservation Instance Interruption Warning", {"instance-id": "i-1"}),
            Kind.CAPACITY_RESERVATION_INTERRUPTION,
            ("i-1",),
        ),
        # An instance that is not named is one that nobody has.
        (body(SPOT, {}), Kind.SPOT_INTERRUPTION, ("",)),
        (body(SPOT, None), Kind.SPOT_INTERRUPTION, ("",)),
    ],
)
def test_messages_about_instances(text: str, kind: Kind, instances: tuple[str, ...]) -> None:
    found = parse(text)
    assert (found.kind, found.instances) == (kind, instances)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{}",
        body(STATE, {"instance-id": "i-1", "state": "pending"}),
        body(STATE, {"instance-id": "i-1", "state": "running"}),
        body(STATE, {"instance-id": "i-1"}),
        body(HEALTH, change(service="RDS")),
        body(HEALTH, change(eventTypeCategory="issue")),
        body(HEALTH, change(), source="aws.ec2"),
        body(SPOT, {"instance-id": "i-1"}, source="aws.ecs"),
        body(SPOT, {"instance-id": "i-1"}, version="1"),
        body("EC2 Instance-terminate Lifecycle Action", {"EC2InstanceId": "i-1"}),
    ],
)
def test_messages_about_nothing(text: str) -> None:
    assert parse(text).kind is Kind.NO_OP


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        body(SPOT, {"instance-id": "i-1"})[:-3],
        " ",
        "[]",
        '"text"',
        "7",
        body(SPOT, "i-1"),
        body(SPOT, ["i-1"]),
        body(SPOT, {"instance-id": 17}),
        body(SPOT, {"instance-id": ["i-1"]}),
        body(SPOT, {"instance-id": "i-1"}, time="yesterday"),
        body(SPOT, {"instance-id": "i-1"}, time="2026-01-01"),
        body(SPOT, {"instance-id": "i-1"}, resources="arn:aws:ec2:us-west-2:1:instance/i-1"),
        body(SPOT, {"instance-id": "i-1"}, resources=[1]),
        body(SPOT, {"instance-id": "i-1"}, account=123456789012),
        body(HEALTH, change(affectedEntities={"entityValue": "i-1"})),
        body(HEALTH, change(affectedEntities=["i-1"])),
        # The whole message is read before it is known to be about another service.
        body(HEALTH, change(service="RDS", affectedEntities="i-1")),
    ],
)
def test_messages_that_cannot_be_read(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


def test_only_a_rebalance_recommendation_leaves_the_claim() -> None:
    assert set(Kind) - ENDING == {Kind.REBALANCE_RECOMMENDATION, Kind.NO_OP}
    assert set(EVENTS) == set(Kind) - {Kind.NO_OP}
