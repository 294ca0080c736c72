"""The CloudFormation template of the queue for interruptions: what it allows to whom, and that events arrive by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cfnlint.api import lint_file
from moto import mock_aws

from gpu_fleet.core.interruptions.messages import DETAIL_TYPES
from tests.unit.queue_stack import ACCOUNT, CLUSTER, REGION, TEMPLATE, Stack, clients, create_stack, template

KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
#: Parameters of the two kinds of encryption.
ENCRYPTION = {"SSE-SQS": {}, "a customer's key": {"KmsKeyArn": KEY}}
QUEUE = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{CLUSTER}-gpu-fleet"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield clients()


@pytest.fixture(params=ENCRYPTION)
def stack(request: pytest.FixtureRequest, aws: dict[str, Any]) -> Stack:
    return create_stack(**ENCRYPTION[request.param])


def test_cfn_lint_has_nothing_to_say() -> None:
    assert [f"{each.rule.id}: {each.message}" for each in lint_file(TEMPLATE)] == []


def test_a_cluster_with_a_long_name_is_refused_before_a_queue_is() -> None:
    longest = template()["Parameters"]["ClusterName"]["MaxLength"]
    assert len("c" * longest + "-gpu-fleet-dlq") == 80


# --- encryption and retention ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ENCRYPTION)
def test_both_queues_are_encrypted_in_one_way(kind: str) -> None:
    resources = template(**ENCRYPTION[kind])["Resources"]
    for name in ("Queue", "DeadLetterQueue"):
        found = resources[name]["Properties"]
        encryption = {key: found.get(key) for key in ("SqsManagedSseEnabled", "KmsMasterKeyId") if key in found}
        expected = {"KmsMasterKeyId": {"Ref": "KmsKeyArn"}} if "key" in kind else {"SqsManagedSseEnabled": True}
        assert encryption == expected


def test_a_message_that_nobody_can_handle_is_kept_longer_than_the_queue_keeps_it(
    stack: Stack, aws: dict[str, Any]
) -> None:
    queue, dead = (attributes(aws, stack.outputs[name]) for name in ("QueueName", "DeadLetterQueueName"))
    assert json.loads(queue["RedrivePolicy"])["deadLetterTargetArn"] == dead["QueueArn"]
    # Its age counts from the first sending, so the difference is what remains to look at it.
    assert int(dead["MessageRetentionPeriod"]) - int(queue["MessageRetentionPeriod"]) >= 7 * 86400
    # No notice of two minutes may be set aside by the number of its receipts before its deadline.
    assert json.loads(queue["RedrivePolicy"])["maxReceiveCount"] * int(queue["VisibilityTimeout"]) > 120
    assert 10 <= int(queue["VisibilityTimeout"]) <= 30


def test_only_this_queue_may_use_the_dead_letter_queue() -> None:
    allowed = template()["Resources"]["DeadLetterQueue"]["Properties"]["RedriveAllowPolicy"]
    assert allowed["redrivePermission"] == "byQueue"
    assert [each["Fn::Sub"].rpartition(":")[2] for each in allowed["sourceQueueArns"]] == ["${ClusterName}-gpu-fleet"]


# --- who may send ----------------------------------------------------------------------------------------------------
def test_only_these_rules_of_this_account_may_send_and_only_over_tls(stack: Stack) -> None:
    arns = {
        "QueuePolicy": stack.outputs["QueueArn"],
        "DeadLetterQueuePolicy": f"{stack.outputs['QueueArn']}-dlq",
    }
    rules = {f"arn:aws:events:{REGION}:{ACCOUNT}:rule/{name}" for name in stack.rules.values()}
    assert len(rules) == 5
    for name, arn in arns.items():
        allow, deny = stack.queue_policies[name]["Statement"]
        assert (allow["Effect"], allow["Principal"]) == ("Allow", {"Service": "events.amazonaws.com"})
        assert (allow["Action"], allow["Resource"]) == ("sqs:SendMessage", arn)
        assert allow["Condition"]["StringEquals"] == {"aws:SourceAccount": ACCOUNT}
        assert set(allow["Condition"]["ArnEquals"]["aws:SourceArn"]) == rules
        assert (deny["Effect"], deny["Principal"], deny["Action"]) == ("Deny", "*", "sqs:*")
        assert (deny["Resource"], deny["Condition"]) == (arn, {"Bool": {"aws:SecureTransport": "false"}})


# --- what Airflow may do ---------------------------------------------------------------------------------------------
#: Actions that know no resource (Service Authorization Reference); everything else names one.
WITHOUT_RESOURCE = {"events:ListRuleNamesByTarget", "ec2:DescribeInstances"}
#: action -> what it may be done to
GRANTED = {
    "sqs:ReceiveMessage": {QUEUE},
    "sqs:DeleteMessage": {QUEUE},
    "sqs:ChangeMessageVisibility": {QUEUE},
    "sqs:SendMessage": {f"{QUEUE}-dlq"},
    "sqs:GetQueueUrl": {QUEUE, f"{QUEUE}-dlq"},
    "sqs:GetQueueAttributes": {QUEUE, f"{QUEUE}-dlq"},
    "events:DescribeRule": "the rules",
    "events:ListTargetsByRule": "the rules",
    "events:ListRuleNamesByTarget": {"*"},
    "ec2:DescribeInstances": {"*"},
    "autoscaling:TerminateInstanceInAutoScalingGroup": {
        f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:*:autoScalingGroupName/eks-*"
    },
}


def test_airflow_is_granted_what_it_needs_and_no_more(stack: Stack) -> None:
    rules = {f"arn:aws:events:{REGION}:{ACCOUNT}:rule/{name}" for name in stack.rules.values()}
    expected = {action: rules if where == "the rules" else where for action, where in GRANTED.items()}
    found: dict[str, set[str]] = {}
    for statement in stack.identity_policy["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in many(statement["Action"]):
            found.setdefault(action, set()).update(many(statement["Resource"]))
            if action.startswith("kms:"):
                assert statement["Condition"] == {"StringEquals": {"kms:ViaService": f"sqs.{REGION}.amazonaws.com"}}
            if action in WITHOUT_RESOURCE:
                assert statement["Condition"] == {"StringEquals": {"aws:RequestedRegion": REGION}}
            if action.startswith("autoscaling:"):
                tag = {"autoscaling:ResourceTag/eks:cluster-name": CLUSTER}
                assert statement["Condition"] == {"StringEquals": tag}
    keys = {action: found.pop(action) for action in list(found) if action.startswith("kms:")}
    assert found == expected
    assert keys in ({}, {"kms:Decrypt": {KEY}, "kms:GenerateDataKey": {KEY}})
    assert {action for action, where in found.items() if where == {"*"}} == WITHOUT_RESOURCE


def test_the_key_is_granted_only_where_there_is_one(aws: dict[str, Any]) -> None:
    sids = {
        kind: {
            each["Sid"]
            for each in template(**given)["Resources"]["AirflowPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        }
        for kind, given in ENCRYPTION.items()
    }
    assert sids["a customer's key"] - sids["SSE-SQS"] == {"UseTheKeyThroughSqs"}


def test_the_policy_is_attached_to_a_role_that_is_named(aws: dict[str, Any]) -> None:
    aws["iam"].create_role(RoleName="airflow", AssumeRolePolicyDocument="{}")
    stack = create_stack(AirflowRoleName="airflow")
    attached = aws["iam"].list_attached_role_policies(RoleName="airflow")["AttachedPolicies"]
    assert [each["PolicyArn"] for each in attached] == [stack.outputs["PolicyArn"]]


# --- events ----------------------------------------------------------------------------------------------------------
#: source, detail-type, detail -> whether it arrives
EVENTS = {
    "spot interruption": ("aws.ec2", "EC2 Spot Instance Interruption Warning", {"instance-action": "terminate"}, True),
    "rebalance": ("aws.ec2", "EC2 Instance Rebalance Recommendation", {"instance-id": "i-1"}, True),
    "stopping": ("aws.ec2", "EC2 Instance State-change Notification", {"state": "stopping"}, True),
    "stopped": ("aws.ec2", "EC2 Instance State-change Notification", {"state": "stopped"}, True),
    "shutting down": ("aws.ec2", "EC2 Instance State-change Notification", {"state": "shutting-down"}, True),
    "terminated": ("aws.ec2", "EC2 Instance State-change Notification", {"state": "terminated"}, True),
    "a launch": ("aws.ec2", "EC2 Instance State-change Notification", {"state": "running"}, False),
    "scheduled change": (
        "aws.health", "AWS Health Event", {"service": "EC2", "eventTypeCategory": "scheduledChange"}, True,
    ),
    "an issue of EC2": ("aws.health", "AWS Health Event", {"service": "EC2", "eventTypeCategory": "issue"}, False),
    "a change of RDS": (
        "aws.health", "AWS Health Event", {"service": "RDS", "eventTypeCategory": "scheduledChange"}, False,
    ),
    "end of a reservation": (
        "aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning", {"instance-id": "i-1"}, True,
    ),
    "an imitation": ("my.app", "EC2 Spot Instance Interruption Warning", {"instance-id": "i-1"}, False),
}  # fmt: skip


@pytest.mark.parametrize("what", EVENTS)
def test_what_concerns_instances_arrives_once_and_whole(what: str, aws: dict[str, Any]) -> None:
    stack = create_stack()
    source, detail_type, detail, arrives = EVENTS[what]
    entry = {"Source": source, "DetailType": detail_type, "Detail": json.dumps(detail)}
    assert aws["events"].put_events(Entries=[entry])["FailedEntryCount"] == 0
    url = aws["sqs"].get_queue_url(QueueName=stack.queue)["QueueUrl"]
    found = aws["sqs"].receive_message(QueueUrl=url, WaitTimeSeconds=0, MaxNumberOfMessages=10).get("Messages", [])
    bodies = [json.loads(each["Body"]) for each in found]
    assert [(each["source"], each["detail-type"], each["detail"]) for each in bodies] == (
        [(source, detail_type, detail)] if arrives else []
    )


def test_there_is_a_rule_for_everything_that_is_read_and_for_nothing_else() -> None:
    rules = [each["Properties"] for each in template()["Resources"].values() if each["Type"] == "AWS::Events::Rule"]
    kinds = [kind for each in rules for kind in each["EventPattern"]["detail-type"]]
    assert sorted(kinds) == sorted(DETAIL_TYPES)


def test_every_rule_has_one_target_that_changes_nothing_and_loses_nothing(stack: Stack, aws: dict[str, Any]) -> None:
    for name in stack.rules.values():
        assert aws["events"].describe_rule(Name=name)["State"] == "ENABLED"
        assert aws["events"].list_targets_by_rule(Rule=name)["Targets"] == [
            {
                "Id": "GpuFleet",
                "Arn": stack.outputs["QueueArn"],
                "DeadLetterConfig": {"Arn": f"{stack.outputs['QueueArn']}-dlq"},
            }
        ]


def attributes(aws: dict[str, Any], queue: str) -> dict[str, str]:
    url = aws["sqs"].get_queue_url(QueueName=queue)["QueueUrl"]
    found: dict[str, str] = aws["sqs"].get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return found


def many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
