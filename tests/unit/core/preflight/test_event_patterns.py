"""Which events a rule delivers: yes, no, or not to be told from its pattern."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_fleet.core.interruptions.messages import DETAIL_TYPES, read_message
from gpu_fleet.core.preflight.event_patterns import ANNOUNCEMENTS, all_of, any_of, delivers

SPOT, REBALANCE, STATE, HEALTH, RESERVATION = (each.detail_type for each in ANNOUNCEMENTS)
EVENTS = {
    sample["detail"].get("state") or each.detail_type: sample
    for each in ANNOUNCEMENTS
    for sample in each.samples("123456789012", "us-west-2")
}


def test_there_are_five_kinds_and_every_state_that_ends_an_instance() -> None:
    assert len(ANNOUNCEMENTS) == 5
    assert sorted(EVENTS) == sorted(
        [SPOT, REBALANCE, HEALTH, RESERVATION, "stopping", "stopped", "shutting-down", "terminated"]
    )


def test_what_the_rules_have_to_deliver_is_what_is_read() -> None:
    assert sorted(each.detail_type for each in ANNOUNCEMENTS) == sorted(DETAIL_TYPES)
    for name, event in EVENTS.items():
        if event["detail-type"] == STATE:
            detail = {**event["detail"], "instance-id": "i-0123456789abcdef0"}
            (notice,) = read_message(json.dumps({**event, "time": "2026-08-01T00:00:00Z", "detail": detail}))
            assert notice.action == name


def of(detail_type: Any, **more: Any) -> dict[str, Any]:
    return {"source": ["aws.ec2"], "detail-type": detail_type, **more}


#: situation -> pattern, event, verdict
PATTERNS: dict[str, tuple[Any, str, bool | None]] = {
    "the kind": (of([SPOT]), SPOT, True),
    "another kind": (of([REBALANCE]), SPOT, False),
    "several kinds": (of([REBALANCE, SPOT]), SPOT, True),
    "another source": ({"source": ["aws.health"], "detail-type": [SPOT]}, SPOT, False),
    "everything of a source": ({"source": ["aws.ec2"]}, REBALANCE, True),
    "everything of another source": ({"source": ["aws.ec2"]}, HEALTH, False),
    "the account": ({"account": ["123456789012"]}, SPOT, True),
    "another account": ({"account": ["210987654321"]}, SPOT, False),
    "another region": (of([SPOT], region=["eu-west-1"]), SPOT, False),
    "a state": (of([STATE], detail={"state": ["stopping", "terminated"]}), "terminated", True),
    "another state": (of([STATE], detail={"state": ["running"]}), "terminated", False),
    "any state": (of([STATE]), "stopped", True),
    "Karpenter's rule for AWS Health": ({"source": ["aws.health"], "detail-type": ["AWS Health Event"]}, HEALTH, True),
    "issues only": ({"source": ["aws.health"], "detail": {"eventTypeCategory": ["issue"]}}, HEALTH, False),
    "some instances": (of([SPOT], detail={"instance-id": ["i-0123456789abcdef0"]}), SPOT, None),
    "some instances of another kind": (of([REBALANCE], detail={"instance-id": ["i-1"]}), SPOT, False),
    "resources": (of([SPOT], resources=[{"prefix": "arn:aws:ec2:us-west-2a"}]), SPOT, None),
    "a beginning": (of([{"prefix": "EC2 Spot"}]), SPOT, True),
    "another beginning": (of([{"prefix": "EC2 Spot"}]), REBALANCE, False),
    "a beginning in any case": (of([{"prefix": {"equals-ignore-case": "ec2"}}]), SPOT, None),
    "an end": (of([{"suffix": "Warning"}]), SPOT, True),
    "another end": (of([{"suffix": "Warning"}]), REBALANCE, False),
    "any case": (of([{"equals-ignore-case": SPOT.upper()}]), SPOT, True),
    "a wildcard": (of([{"wildcard": "EC2 * Warning"}]), RESERVATION, True),
    "a wildcard for others": (of([{"wildcard": "EC2 * Warning"}]), REBALANCE, False),
    "a dot is no wildcard": (of([{"wildcard": "EC2.*"}]), SPOT, False),
    "all but this": (of([{"anything-but": SPOT}]), SPOT, False),
    "all but others": (of([{"anything-but": [REBALANCE]}]), SPOT, True),
    "all but what begins so": (of([{"anything-but": {"prefix": "EC2"}}]), SPOT, None),
    "present": (of([{"exists": True}]), SPOT, True),
    "absent": (of([{"exists": False}]), SPOT, False),
    "numbers": (of([{"numeric": [">", 0]}]), SPOT, None),
    "a comparison that is not evaluated, beside one that matches": (of([{"numeric": [">", 0]}, SPOT]), SPOT, True),
    "either": ({"$or": [{"detail-type": [REBALANCE]}, {"source": ["aws.ec2"]}]}, SPOT, True),
    "neither": ({"$or": [{"detail-type": [REBALANCE]}, {"source": ["aws.health"]}]}, SPOT, False),
    "perhaps one of two": ({"$or": [{"detail-type": [REBALANCE]}, {"id": ["x"]}]}, SPOT, None),
    "a field where an object is": ({"detail": ["x"]}, SPOT, None),
    "an object where a field is": ({"source": {"x": ["y"]}}, SPOT, False),
}  # fmt: skip


@pytest.mark.parametrize("situation", PATTERNS)
def test_a_pattern_is_judged(situation: str) -> None:
    pattern, event, verdict = PATTERNS[situation]
    assert delivers(json.dumps(pattern), EVENTS[event]) is verdict


@pytest.mark.parametrize(("pattern", "verdict"), [("", False), ("{", None), ("[]", None)])
def test_what_is_no_pattern(pattern: str, verdict: bool | None) -> None:
    assert delivers(pattern, EVENTS[SPOT]) is verdict


@pytest.mark.parametrize(
    ("verdicts", "every", "some"),
    [
        ([], True, False), ([True], True, True), ([False], False, False), ([None], None, None),
        ([True, None], None, True), ([False, None], False, None), ([True, False], False, True),
    ],
)  # fmt: skip
def test_what_cannot_be_told_stays_so_unless_the_rest_decides(
    verdicts: list[bool | None], every: bool | None, some: bool | None
) -> None:
    assert (all_of(verdicts), any_of(verdicts)) == (every, some)
