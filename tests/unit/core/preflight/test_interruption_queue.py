"""What the package's own queue lacks is named; what cannot be looked up is not called missing."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from gpu_fleet.core.preflight.event_patterns import ANNOUNCEMENTS
from gpu_fleet.core.preflight.facts import Prerequisite, State, Unseen
from gpu_fleet.core.preflight.interruption_queue import QueueFacts, RuleFacts, judge_queue

QUEUE, ARN = "demo-gpu-gpu-fleet", "arn:aws:sqs:us-west-2:123456789012:demo-gpu-gpu-fleet"
SPOT, REBALANCE, STATE, HEALTH, RESERVATION = (each.detail_type for each in ANNOUNCEMENTS)
STATES = "EC2 Instance State-change Notification"


def rule(name: str, detail_type: str, **changes: Any) -> RuleFacts:
    source = "aws.health" if detail_type == HEALTH else "aws.ec2"
    pattern = {"source": [source], "detail-type": [detail_type], **changes.pop("more", {})}
    arn = f"arn:aws:events:us-west-2:123456789012:rule/{name}"
    return replace(RuleFacts(name, arn, pattern=json.dumps(pattern), target_ids=("GpuFleet",)), **changes)


RULES = {name: rule(name, each.detail_type) for name, each in zip(
    ("spot", "rebalance", "state", "health", "reservation"), ANNOUNCEMENTS, strict=True
)}  # fmt: skip


def policy(**changes: Any) -> str:
    events = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage"}
    return json.dumps({"Statement": [{**events, "Resource": ARN, **changes}]})


ATTRIBUTES = {
    "QueueArn": ARN,
    "Policy": policy(),
    "RedrivePolicy": json.dumps({"deadLetterTargetArn": f"{ARN}-dlq", "maxReceiveCount": 20}),
}
GOOD = QueueFacts(exists=True, attributes=ATTRIBUTES, dead_letters=True, rules=list(RULES.values()))
OWN, DEAD, POLICY = (
    "interruption queue of gpu-fleet",
    "dead-letter queue of the interruption queue",
    "policy of the interruption queue",
)


def judged(facts: QueueFacts, name: str | None = QUEUE, karpenters: str | None = "demo-gpu") -> dict[str, Prerequisite]:
    found = judge_queue(name, karpenters, "us-west-2", facts)
    assert len({each.name for each in found}) == len(found)
    return {each.name: each for each in found}


def test_a_queue_with_everything_lacks_nothing() -> None:
    found = judged(GOOD)
    assert {each.state for each in found.values()} == {State.MET}
    assert list(found) == [OWN, DEAD, *(f"rule for {each.detail_type}" for each in ANNOUNCEMENTS), POLICY]


def test_without_a_queue_nothing_is_needed() -> None:
    assert judged(QueueFacts(), None) == {}


def without(*names: str, **changed: RuleFacts | Unseen) -> list[RuleFacts | Unseen]:
    return [changed.get(name, each) for name, each in RULES.items() if name not in names]


FORBIDDEN = Unseen("events:DescribeRule is not allowed (AccessDenied)", "events:DescribeRule")
#: situation -> what differs, prerequisite, its state, part of the message, part of the remedy; all others are met
SITUATIONS: dict[str, tuple[dict[str, Any], str, State, str, str]] = {
    "no dead-letter queue": (
        {"attributes": {**ATTRIBUTES, "RedrivePolicy": ""}, "dead_letters": None}, DEAD, State.MISSING,
        "no RedrivePolicy", "interruptions.yaml",
    ),
    "a dead-letter queue that is gone": (
        {"dead_letters": False}, DEAD, State.MISSING, "names demo-gpu-gpu-fleet-dlq, and there is no such queue",
        "interruptions.yaml",
    ),
    "a dead-letter queue that may not be seen": (
        {"dead_letters": Unseen("no", "sqs:GetQueueUrl")}, DEAD, State.UNKNOWN, "not checked", "grant sqs:GetQueueUrl",
    ),
    "no rule for rebalances": (
        {"rules": without("rebalance")}, f"rule for {REBALANCE}", State.MISSING,
        "no rule delivers EC2 Instance Rebalance Recommendation; a raised risk", "interruptions.yaml",
    ),
    "no rule for spot": (
        {"rules": without("spot")}, f"rule for {SPOT}", State.MISSING, f"no rule delivers {SPOT}; spot nodes would end",
        "interruptions.yaml",
    ),
    "no rule for reservations": (
        {"rules": without("reservation")}, f"rule for {RESERVATION}", State.MISSING, f"no rule delivers {RESERVATION};",
        "interruptions.yaml",
    ),
    "no rule for health": (
        {"rules": without("health")}, f"rule for {HEALTH}", State.MISSING, f"no rule delivers {HEALTH};",
        "interruptions.yaml",
    ),
    "no rule for states": (
        {"rules": without("state")}, f"rule for {STATE}", State.MISSING, f"no rule delivers {STATES};",
        "interruptions.yaml",
    ),
    "a rule for two of the states": (
        {"rules": without(state=rule("state", STATE, more={"detail": {"state": ["stopping", "terminated"]}}))},
        f"rule for {STATE}", State.MISSING, f"no rule delivers {STATES} of the states stopped, shutting-down;",
        "interruptions.yaml",
    ),
    "a rule that is disabled": (
        {"rules": without(spot=rule("spot", SPOT, enabled=False))}, f"rule for {SPOT}", State.MISSING,
        f"rule spot for {SPOT} is disabled", "aws events enable-rule --name spot",
    ),
    "a rule that changes the event": (
        {"rules": without(spot=rule("spot", SPOT, transformed=True))}, f"rule for {SPOT}", State.MISSING,
        "rule spot delivers EC2 Spot Instance Interruption Warning in another form", "matched event",
    ),
    "a rule for some instances": (
        {"rules": without(spot=rule("spot", SPOT, more={"detail": {"instance-id": ["i-1"]}}))}, f"rule for {SPOT}",
        State.UNKNOWN, f"whether rule spot delivers {SPOT} depends on parts of its pattern", "check it yourself",
    ),
    "a rule that may not be seen": (
        {"rules": without(spot=FORBIDDEN)}, f"rule for {SPOT}", State.UNKNOWN, "not checked: events:DescribeRule",
        "grant events:DescribeRule",
    ),
    "a policy for another rule": (
        {"attributes": {**ATTRIBUTES, "Policy": policy(Condition={"ArnEquals": {"aws:SourceArn": [
            each.arn for name, each in RULES.items() if name != "health"]}})}},
        POLICY, State.MISSING, "does not let events.amazonaws.com send for rule health,", "interruptions.yaml",
    ),
    "no policy": (
        {"attributes": {**ATTRIBUTES, "Policy": ""}}, POLICY, State.MISSING,
        "send for rule spot, rebalance, state, health, reservation,", "interruptions.yaml",
    ),
    "a policy with a condition that is not evaluated": (
        {"attributes": {**ATTRIBUTES, "Policy": policy(Condition={"StringEquals": {"aws:SourceOrgID": "o-1"}})}},
        POLICY, State.UNKNOWN, "not evaluated", "check it yourself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_one_thing_that_is_wrong_is_named_and_nothing_else(situation: str) -> None:
    changes, name, state, message, remedy = SITUATIONS[situation]
    found = judged(replace(GOOD, **changes))
    assert found[name].state is state
    assert message in found[name].message
    assert remedy in found[name].remedy
    assert {key: each.state for key, each in found.items() if each.state is not State.MET} == {name: state}


def test_another_rule_may_deliver_what_one_does_not() -> None:
    rules = without(spot=rule("spot", SPOT, enabled=False))
    assert {each.state for each in judged(replace(GOOD, rules=[*rules, rule("mine", SPOT)])).values()} == {State.MET}


def test_without_any_rule_every_kind_is_named() -> None:
    found = judged(replace(GOOD, rules=[]))
    missing = [name for name, each in found.items() if each.state is State.MISSING]
    assert missing == [f"rule for {each.detail_type}" for each in ANNOUNCEMENTS]
    assert POLICY not in found


# --- Karpenter's queue -----------------------------------------------------------------------------------------------
def test_karpenters_queue_is_refused_by_its_name_alone() -> None:
    found = judged(QueueFacts(), "demo-gpu", "demo-gpu")
    assert [(each.name, each.state) for each in found.values()] == [(OWN, State.MISSING)]
    assert "is karpenter.interruptionQueue" in found[OWN].message
    assert "a queue of its own" in found[OWN].remedy


def test_karpenters_queue_is_recognized_by_its_rules_where_the_file_does_not_name_it() -> None:
    theirs = rule("SpotInterruptionRule", SPOT, target_ids=("KarpenterInterruptionQueueTarget",))
    found = judged(replace(GOOD, rules=[theirs]), "old-queue", None)
    assert [(each.name, each.state) for each in found.values()] == [(OWN, State.MISSING)]
    assert "old-queue is the target KarpenterInterruptionQueueTarget of rule SpotInterruptionRule" in found[OWN].message


# --- what does not exist, or cannot be seen --------------------------------------------------------------------------
def test_a_queue_that_does_not_exist_is_missing_and_nothing_else_is_said() -> None:
    found = judged(QueueFacts(exists=False))
    assert [(each.name, each.state) for each in found.values()] == [(OWN, State.MISSING)]
    assert "no SQS queue demo-gpu-gpu-fleet in us-west-2" in found[OWN].message
    assert "interruptions.queue" in found[OWN].remedy


@pytest.mark.parametrize("what", [each.name for each in fields(QueueFacts)])
@pytest.mark.parametrize("unseen", [Unseen("denied", "sqs:GetQueueUrl"), None])
def test_what_cannot_be_looked_up_is_unknown_and_never_missing(what: str, unseen: Unseen | None) -> None:
    found = judged(replace(GOOD, **{what: unseen}))
    states = {each.state for each in found.values()}
    assert State.MISSING not in states
    assert State.UNKNOWN in states
    for each in found.values():
        if each.state is State.UNKNOWN and unseen:
            assert "grant sqs:GetQueueUrl" in each.remedy


def test_rules_that_may_not_be_seen_make_everything_about_them_unknown() -> None:
    found = judged(replace(GOOD, rules=[FORBIDDEN]))
    unknown = [name for name, each in found.items() if each.state is State.UNKNOWN]
    assert unknown == [*(f"rule for {each.detail_type}" for each in ANNOUNCEMENTS), POLICY]
