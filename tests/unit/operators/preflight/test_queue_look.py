"""What preflight sees of the queue that the CloudFormation template creates, and of ones that lack something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from moto import mock_aws

from gpu_fleet.core.errors import ApiUnavailable, Forbidden
from gpu_fleet.core.preflight.facts import State, Unseen
from gpu_fleet.core.preflight.interruption_queue import QueueFacts, judge_queue
from gpu_fleet.hooks.aws.session import AwsSession
from gpu_fleet.operators.preflight.asking import Asking
from gpu_fleet.operators.preflight.queue_look import QueueLook
from tests.unit.queue_stack import REGION, Stack, clients, create_stack
from tools.reference.permissions import IAM

QUEUE = "demo-gpu-gpu-fleet"
REBALANCE = "EC2 Instance Rebalance Recommendation"


class Session(AwsSession):
    """One that is refused some calls, and notes all of them."""

    def __init__(self) -> None:
        super().__init__(None, REGION)
        self.refused: dict[str, Exception] = {}
        self.calls: list[tuple[str, str]] = []

    def call(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        self._noted(service, operation)
        return super().call(service, operation, **params)

    def paginate(self, service: str, operation: str, path: str, **params: Any) -> list[Any]:
        self._noted(service, operation)
        return super().paginate(service, operation, path, **params)

    def _noted(self, service: str, operation: str) -> None:
        self.calls.append((service, operation))
        if operation in self.refused:
            raise self.refused[operation]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield clients()


@pytest.fixture
def stack(aws: dict[str, Any]) -> Stack:
    return create_stack()


@pytest.fixture
def session() -> Session:
    return Session()


def looked(session: Session, name: str = QUEUE) -> QueueFacts:
    return QueueLook(Asking(session)).facts(name)


def wrong(facts: QueueFacts, name: str = QUEUE) -> dict[str, State]:
    found = judge_queue(name, "demo-gpu", REGION, facts)
    assert found
    return {each.name: each.state for each in found if each.state is not State.MET}


def test_what_the_template_creates_has_everything(stack: Stack, session: Session) -> None:
    facts = looked(session)
    assert wrong(facts) == {}
    assert facts.rules is not None
    assert not isinstance(facts.rules, Unseen)
    assert len(facts.rules) == 5
    # Two for the queue, one for its dead-letter queue, one for the rules, two per rule.
    assert len(session.calls) == 14


def test_what_it_asks_for_is_what_the_template_grants(stack: Stack, session: Session) -> None:
    looked(session)
    called = {f"{service}:{''.join(part.capitalize() for part in name.split('_'))}" for service, name in session.calls}
    granted = {
        action
        for statement in stack.identity_policy["Statement"]
        for action in (statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]])
    }
    assert called <= granted
    assert called == set(next(each.actions for each in IAM if "interruptions.queue" in each.purpose))


def test_no_queue(aws: dict[str, Any], session: Session) -> None:
    facts = looked(session)
    assert facts == QueueFacts(exists=False)
    assert session.calls == [("sqs", "get_queue_url")]


def test_a_bare_queue_lacks_a_dead_letter_queue_and_every_rule(aws: dict[str, Any], session: Session) -> None:
    aws["sqs"].create_queue(QueueName=QUEUE)
    facts = looked(session)
    assert (facts.dead_letters, facts.rules) == (None, [])
    assert set(wrong(facts).values()) == {State.MISSING}
    assert len(wrong(facts)) == 6


def test_a_dead_letter_queue_that_was_deleted(stack: Stack, aws: dict[str, Any], session: Session) -> None:
    url = aws["sqs"].get_queue_url(QueueName=f"{QUEUE}-dlq")["QueueUrl"]
    aws["sqs"].delete_queue(QueueUrl=url)
    assert wrong(looked(session)) == {"dead-letter queue of the interruption queue": State.MISSING}


def test_a_rule_that_was_deleted_or_disabled(stack: Stack, aws: dict[str, Any], session: Session) -> None:
    aws["events"].disable_rule(Name=stack.rules["RebalanceRule"])
    aws["events"].remove_targets(Rule=stack.rules["SpotInterruptionRule"], Ids=["GpuFleet"])
    found = wrong(looked(session))
    assert found == {
        f"rule for {REBALANCE}": State.MISSING,
        "rule for EC2 Spot Instance Interruption Warning": State.MISSING,
    }


def test_a_target_that_receives_something_else_than_the_event(
    stack: Stack, aws: dict[str, Any], session: Session
) -> None:
    target = {"Id": "GpuFleet", "Arn": stack.outputs["QueueArn"], "InputPath": "$.detail"}
    aws["events"].put_targets(Rule=stack.rules["RebalanceRule"], Targets=[target])
    assert wrong(looked(session)) == {f"rule for {REBALANCE}": State.MISSING}
    aws["events"].put_targets(
        Rule=stack.rules["RebalanceRule"], Targets=[{"Id": "Whole", "Arn": stack.outputs["QueueArn"]}]
    )
    assert wrong(looked(session)) == {}, "one target that receives the event itself is enough"


def test_karpenters_queue_under_another_name(aws: dict[str, Any], session: Session) -> None:
    url = aws["sqs"].create_queue(QueueName="old")["QueueUrl"]
    arn = aws["sqs"].get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    pattern = json.dumps({"source": ["aws.ec2"], "detail-type": [REBALANCE]})
    aws["events"].put_rule(Name="RebalanceRule", EventPattern=pattern)
    aws["events"].put_targets(Rule="RebalanceRule", Targets=[{"Id": "KarpenterInterruptionQueueTarget", "Arn": arn}])
    assert wrong(looked(session, "old"), "old") == {"interruption queue of gpu-fleet": State.MISSING}


#: operation that is refused -> how many of the judgements are unknown
DENIED = {
    "get_queue_url": 1,
    "get_queue_attributes": 3,
    "list_rule_names_by_target": 2,
    "describe_rule": 6,
    "list_targets_by_rule": 6,
}


@pytest.mark.parametrize("operation", DENIED)
def test_what_may_not_be_seen_is_unknown_with_the_permission_that_is_missing(
    operation: str, stack: Stack, session: Session
) -> None:
    session.refused = {operation: Forbidden("not authorized", reason="AccessDenied")}
    found = [each for each in judge_queue(QUEUE, "demo-gpu", REGION, looked(session)) if each.state is not State.MET]
    assert {each.state for each in found} == {State.UNKNOWN}
    assert len(found) == DENIED[operation]
    action = "".join(part.capitalize() for part in operation.split("_"))
    assert all(f":{action} to have it checked" in each.remedy for each in found)


def test_a_service_that_does_not_answer_is_asked_once(stack: Stack, session: Session) -> None:
    session.refused = {"list_rule_names_by_target": ApiUnavailable("no route to events")}
    asking = Asking(session)
    for _ in range(2):
        facts = QueueLook(asking).facts(QUEUE)
        assert set(wrong(facts).values()) == {State.UNKNOWN}
    assert sum(service == "events" for service, _ in session.calls) == 1
