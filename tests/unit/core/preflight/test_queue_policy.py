"""Whether a queue's policy lets a rule send: yes, no, or not to be told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_fleet.core.preflight.queue_policy import may_send

QUEUE = "arn:aws:sqs:us-west-2:123456789012:demo-gpu-gpu-fleet"
RULE = "arn:aws:events:us-west-2:123456789012:rule/spot"
OTHER = "arn:aws:events:us-west-2:123456789012:rule/other"
EVENTS = {"Service": "events.amazonaws.com"}


def allow(**changes: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": EVENTS, "Action": "sqs:SendMessage", "Resource": QUEUE, **changes}


def source(operator: str, arn: Any) -> dict[str, Any]:
    return {"Condition": {operator: {"aws:SourceArn": arn}}}


TLS = allow(Effect="Deny", Principal="*", Action="sqs:*", Condition={"Bool": {"aws:SecureTransport": False}})
#: situation -> statements, verdict
POLICIES: dict[str, tuple[Any, bool | None]] = {
    "EventBridge": ([allow()], True),
    "EventBridge, one statement": (allow(), True),
    "EventBridge among services": (
        [allow(Principal={"Service": ["sqs.amazonaws.com", "events.amazonaws.com"]})], True,
    ),
    "everybody": ([allow(Principal="*")], True),
    "everybody as an account": ([allow(Principal={"AWS": "*"})], True),
    "another service": ([allow(Principal={"Service": "sns.amazonaws.com"})], False),
    "an account": ([allow(Principal={"AWS": "arn:aws:iam::123456789012:root"})], False),
    "nobody": ([], False),
    "another queue": ([allow(Resource=f"{QUEUE}-dlq")], False),
    "any queue": ([allow(Resource="arn:aws:sqs:*:*:*")], True),
    "receiving only": ([allow(Action="sqs:ReceiveMessage")], False),
    "every action": ([allow(Action=["sqs:*"])], True),
    "an action in other letters": ([allow(Action="SQS:sendmessage")], True),
    "this rule": ([allow(**source("ArnEquals", RULE))], True),
    "these rules": ([allow(**source("ArnEquals", [OTHER, RULE]))], True),
    "another rule": ([allow(**source("ArnEquals", OTHER))], False),
    "rules like it": ([allow(**source("ArnLike", f"{RULE[:-4]}*"))], True),
    "rules unlike it": ([allow(**source("StringLike", f"{OTHER[:-2]}*"))], False),
    "a pattern that is compared exactly": ([allow(**source("StringEquals", f"{RULE[:-4]}*"))], False),
    "the account's": ([allow(Condition={"StringEquals": {"AWS:SourceAccount": "123456789012"}})], True),
    "another account's": ([allow(Condition={"StringEquals": {"aws:SourceAccount": "1"}})], False),
    "an organisation's": ([allow(Condition={"StringEquals": {"aws:SourceOrgID": "o-1"}})], None),
    "an operator that is not evaluated": ([allow(**source("ForAnyValue:ArnLike", RULE))], None),
    "with what may be absent": ([allow(**source("ArnEqualsIfExists", RULE))], True),
    "one of two statements": ([allow(**source("ArnEquals", OTHER)), allow(**source("ArnEquals", RULE))], True),
    "only over TLS": ([allow(), TLS], True),
    "only without TLS": ([allow(Condition={"Bool": {"aws:SecureTransport": "false"}})], False),
    "a denial": ([allow(), allow(Effect="Deny")], False),
    "a denial for others": ([allow(), allow(Effect="Deny", **source("ArnEquals", OTHER))], True),
    "a denial that is not evaluated": (
        [allow(), {**allow(Effect="Deny"), "NotPrincipal": {"AWS": "x"}}], None,
    ),
    "everything but an action": ([allow() | {"NotAction": "sqs:DeleteQueue"}], None),
    "statements that are none": (["x"], None),
}  # fmt: skip


@pytest.mark.parametrize("situation", POLICIES)
def test_a_policy_is_judged(situation: str) -> None:
    statements, verdict = POLICIES[situation]
    assert may_send(json.dumps({"Version": "2012-10-17", "Statement": statements}), QUEUE, RULE) is verdict


@pytest.mark.parametrize(("policy", "verdict"), [("", False), ("{", None), ("[]", False)])
def test_what_is_no_policy(policy: str, verdict: bool | None) -> None:
    assert may_send(policy, QUEUE, RULE) is verdict
