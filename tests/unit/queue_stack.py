"""The CloudFormation template of the package's queue: read as CloudFormation reads it, and as a stack in moto."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from cfnlint.decode import cfn_yaml

TEMPLATE = Path(__file__).resolve().parents[2] / "include" / "cloudformation" / "interruptions.yaml"
ACCOUNT, REGION, CLUSTER = "123456789012", "us-west-2", "demo-gpu"
POLICIES = ("QueuePolicy", "DeadLetterQueuePolicy")


def template(**parameters: str) -> dict[str, Any]:
    """The template with its conditions decided: ``Fn::If`` chooses, and ``AWS::NoValue`` removes, also from a list.

    :param parameters: those that differ from their defaults.
    """
    body: dict[str, Any] = json.loads(json.dumps(cfn_yaml.load(str(TEMPLATE))))
    given = {name: entry.get("Default") for name, entry in body["Parameters"].items()} | parameters
    holds: dict[str, bool] = {}
    for name, condition in body.pop("Conditions").items():
        ((left, right),) = (each["Fn::Equals"] for each in condition["Fn::Not"])
        holds[name] = given[left["Ref"]] != right
    body["Resources"] = _decided(body["Resources"], holds)
    return body


def _decided(value: Any, holds: Mapping[str, bool]) -> Any:
    if isinstance(value, list):
        return [found for each in value if (found := _decided(each, holds)) is not _NOTHING]
    if not isinstance(value, dict):
        return value
    if value == {"Ref": "AWS::NoValue"}:
        return _NOTHING
    if set(value) == {"Fn::If"}:
        name, then, otherwise = value["Fn::If"]
        return _decided(then if holds[name] else otherwise, holds)
    return {key: found for key, each in value.items() if (found := _decided(each, holds)) is not _NOTHING}


_NOTHING = object()


def resolved(value: Any, known: Mapping[str, str]) -> Any:
    """``Ref``, ``Fn::GetAtt`` and ``Fn::Sub`` replaced.

    :param known: names as ``Fn::Sub`` writes them, ``Queue.Arn``.
    """
    if isinstance(value, list):
        return [resolved(each, known) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Ref"}:
        return known[value["Ref"]]
    if set(value) == {"Fn::GetAtt"}:
        return known[".".join(value["Fn::GetAtt"])]
    if set(value) == {"Fn::Sub"}:
        return re.sub(r"\$\{([^}]+)\}", lambda match: known[match[1]], value["Fn::Sub"])
    return {key: resolved(each, known) for key, each in value.items()}


@dataclass(frozen=True)
class Stack:
    """What was created: the outputs of the stack, and the documents of the policies."""

    outputs: dict[str, str]
    queue_policies: dict[str, dict[str, Any]]
    identity_policy: dict[str, Any]
    rules: dict[str, str]

    @property
    def queue(self) -> str:
        return self.outputs["QueueName"]


def clients() -> dict[str, Any]:
    return {name: boto3.client(name, region_name=REGION) for name in ("cloudformation", "sqs", "events", "iam")}


def create_stack(**parameters: str) -> Stack:
    """Creates the stack in moto, inside ``mock_aws``.

    Moto 5.2.5 has no AWS::SQS::QueuePolicy, and leaves an empty entry where ``AWS::NoValue`` removes one from a list:
    so conditions are decided here, and the queues get their policies from here.
    """
    aws, given = clients(), {"ClusterName": CLUSTER, **parameters}
    body = template(**given)
    without = deepcopy(body)
    for name in POLICIES:
        del without["Resources"][name]
    aws["cloudformation"].create_stack(
        StackName="interruptions",
        TemplateBody=json.dumps(without),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = aws["cloudformation"].describe_stacks(StackName="interruptions")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    made = aws["cloudformation"].list_stack_resources(StackName="interruptions")["StackResourceSummaries"]
    physical = {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in made}
    rules = {name: each for name, each in physical.items() if name.endswith("Rule")}
    known = {**given, "AWS::AccountId": ACCOUNT, **physical}
    known |= {f"{name}.Arn": f"arn:aws:events:{REGION}:{ACCOUNT}:rule/{each}" for name, each in rules.items()}
    for name in ("Queue", "DeadLetterQueue"):
        known[f"{name}.Arn"] = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{physical[name].rpartition('/')[2]}"
    policies = {}
    for name in POLICIES:
        properties = resolved(body["Resources"][name]["Properties"], known)
        policies[name] = properties["PolicyDocument"]
        for url in properties["Queues"]:
            aws["sqs"].set_queue_attributes(
                QueueUrl=url, Attributes={"Policy": json.dumps(properties["PolicyDocument"])}
            )
    outputs = {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}
    version = aws["iam"].get_policy_version(PolicyArn=outputs["PolicyArn"], VersionId="v1")["PolicyVersion"]
    return Stack(outputs, policies, version["Document"], rules)
