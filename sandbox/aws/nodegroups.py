"""Nodes of other teams: instances of EKS managed node groups, which Karpenter does not manage.

A managed node group's labels and taints reach its nodes through their user data, as nodeadm's NodeConfig with kubelet
flags (docs.aws.amazon.com/eks, 'Customize managed nodes with launch templates'; awslabs/amazon-eks-ami
``nodeadm/doc/api.md``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws.account import GROUP_ROLE, image_of
from sandbox.aws.client import Aws
from sandbox.settings import Settings

_NVIDIA_FAMILIES = ("g", "p")
_TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


class NodeGroupError(Exception):
    """The node cannot be launched; the message says why."""


def parse_taint(text: str) -> str:
    """A taint as kubectl writes it, ``key=value:Effect`` or ``key:Effect``; returned as it was given.

    :raises NodeGroupError: it is none.
    """
    key, separator, effect = text.rpartition(":")
    if not separator or not key.partition("=")[0] or effect not in _TAINT_EFFECTS:
        raise NodeGroupError(f"{text!r} is not KEY=VALUE:EFFECT with one of {', '.join(_TAINT_EFFECTS)}")
    return text


async def add_node(
    aws: Aws,
    settings: Settings,
    instance_type: str,
    group: str,
    labels: Mapping[str, str] | None = None,
    taints: Iterable[str] = (),
) -> str:
    """Launch one instance of a managed node group, created if it does not exist; returns the instance's id.

    :param taints: see :func:`parse_taint`.
    :raises NodeGroupError: EC2 or EKS refuses.
    """
    try:
        return await _add_node(
            aws, settings, instance_type, group, dict(labels or {}), [parse_taint(t) for t in taints]
        )
    except ClientError as error:
        raise NodeGroupError(str(error)) from error


async def _add_node(
    aws: Aws, settings: Settings, instance_type: str, group: str, labels: dict[str, str], taints: list[str]
) -> str:
    cluster = settings.cluster_name
    described = (await aws.call("eks", "describe_cluster", name=cluster))["cluster"]
    network = described["resourcesVpcConfig"]
    await _ensure_group(aws, settings, instance_type, group, labels, network["subnetIds"])
    flavour = "nvidia" if instance_type.startswith(_NVIDIA_FAMILIES) else "standard"
    tags = {
        f"kubernetes.io/cluster/{cluster}": "owned",
        "eks:cluster-name": cluster,
        "eks:nodegroup-name": group,
        "Name": f"{cluster}-{group}",
    }
    reply = await aws.call(
        "ec2",
        "run_instances",
        ImageId=await image_of(aws, settings, flavour, "al2023@latest"),
        InstanceType=instance_type,
        MinCount=1,
        MaxCount=1,
        SubnetId=network["subnetIds"][0],
        SecurityGroupIds=network["securityGroupIds"],
        UserData=json.dumps(node_config(cluster, labels, taints)),
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
        ],
    )
    return str(reply["Instances"][0]["InstanceId"])


async def _ensure_group(
    aws: Aws, settings: Settings, instance_type: str, group: str, labels: dict[str, str], subnets: list[str]
) -> None:
    try:
        await aws.call(
            "eks",
            "create_nodegroup",
            clusterName=settings.cluster_name,
            nodegroupName=group,
            scalingConfig={"minSize": 0, "maxSize": 10, "desiredSize": 1},
            instanceTypes=[instance_type],
            subnets=subnets[:1],
            nodeRole=f"arn:aws:iam::{settings.account}:role/{GROUP_ROLE}-{settings.cluster_name}",
            labels=labels,
            version=settings.kubernetes_version,
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceInUseException":
            raise


def node_config(cluster: str, labels: Mapping[str, str], taints: Iterable[str]) -> dict[str, Any]:
    """nodeadm's NodeConfig with the labels and taints to register with."""
    flags = [f"--node-labels={','.join(f'{key}={value}' for key, value in sorted(labels.items()))}"] if labels else []
    listed = ",".join(taints)
    if listed:
        flags.append(f"--register-with-taints={listed}")
    return {
        "apiVersion": "node.eks.aws/v1alpha1",
        "kind": "NodeConfig",
        "spec": {"cluster": {"name": cluster}, "kubelet": {"flags": flags}},
    }


async def registration_of(aws: Aws, instance_id: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The labels and taints with which an instance's kubelet registers, from its user data; empty without user data."""
    reply = await aws.call("ec2", "describe_instance_attribute", InstanceId=instance_id, Attribute="userData")
    text = (reply.get("UserData") or {}).get("Value") or ""
    try:
        config = json.loads(base64.b64decode(text)) if text else {}
    except ValueError:
        return {}, []  # for example a shell script, which nodeadm does not read
    labels: dict[str, str] = {}
    taints: list[dict[str, str]] = []
    for flag in config.get("spec", {}).get("kubelet", {}).get("flags") or []:
        name, _, value = str(flag).partition("=")
        for item in filter(None, value.split(",")):
            if name == "--node-labels":
                key, _, shown = item.partition("=")
                labels[key] = shown
            elif name == "--register-with-taints":
                pair, _, effect = item.rpartition(":")
                key, _, shown = pair.partition("=")
                taints.append({"key": key, **({"value": shown} if shown else {}), "effect": effect})
    return labels, taints
