"""Nodes of other teams: instances of EKS managed node groups, which Karpenter does not manage.

Every managed node is an instance of an EC2 Auto Scaling group, made from a launch template; the group replaces what it
loses (docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html; :mod:`sandbox.aws.scalinggroups`). A spot
group has Capacity Rebalancing on, on which the sandbox does not act: with it EKS replaces and drains a node by itself
after a rebalance recommendation.

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
_LARGEST = 100
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
    *,
    spot: bool = False,
) -> str:
    """One more instance in a managed node group, created if it does not exist; returns the instance's id.

    A call with a type, labels or taints that are not the group's launches from a new version of its launch template; so
    will the group from then on.

    :param taints: see :func:`parse_taint`.
    :param spot: the group's capacity type is SPOT.
    :raises NodeGroupError: EC2, Auto Scaling or EKS refuses.
    """
    try:
        return await _add_node(
            aws, settings, instance_type, group, dict(labels or {}), [parse_taint(t) for t in taints], spot=spot
        )
    except ClientError as error:
        raise NodeGroupError(str(error)) from error


async def _add_node(
    aws: Aws,
    settings: Settings,
    instance_type: str,
    group: str,
    labels: dict[str, str],
    taints: list[str],
    *,
    spot: bool,
) -> str:
    cluster = settings.cluster_name
    described = (await aws.call("eks", "describe_cluster", name=cluster))["cluster"]
    network = described["resourcesVpcConfig"]
    flavour = "nvidia" if instance_type.startswith(_NVIDIA_FAMILIES) else "standard"
    data = {
        "ImageId": await image_of(aws, settings, flavour, "al2023@latest"),
        "InstanceType": instance_type,
        "SecurityGroupIds": network["securityGroupIds"],
        "UserData": base64.b64encode(json.dumps(node_config(cluster, labels, taints)).encode()).decode(),
        **({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}),
    }
    # EC2 refuses here what Auto Scaling would only write into its activities.
    await _tried(aws, data, network["subnetIds"][0])
    await _ensure_group(aws, settings, instance_type, group, labels, network["subnetIds"], spot=spot)
    scaling = await _ensure_scaling_group(aws, settings, group, data, network["subnetIds"][0], spot=spot)
    before = {each["InstanceId"] for each in scaling["Instances"]}
    name = scaling["AutoScalingGroupName"]
    size = scaling["DesiredCapacity"] + 1
    await aws.call("autoscaling", "set_desired_capacity", AutoScalingGroupName=name, DesiredCapacity=size)
    found = await _scaling_group(aws, name)
    return str(next(each["InstanceId"] for each in found["Instances"] if each["InstanceId"] not in before))


async def _tried(aws: Aws, data: dict[str, Any], subnet: str) -> None:
    try:
        await aws.call("ec2", "run_instances", MinCount=1, MaxCount=1, SubnetId=subnet, DryRun=True, **data)
    except ClientError as error:
        if error.response["Error"]["Code"] != "DryRunOperation":
            raise


async def _ensure_scaling_group(
    aws: Aws, settings: Settings, group: str, data: dict[str, Any], subnet: str, *, spot: bool
) -> dict[str, Any]:
    """The group's Auto Scaling group, which launches from this data."""
    cluster = settings.cluster_name
    described = await aws.call("eks", "describe_nodegroup", clusterName=cluster, nodegroupName=group)
    name = described["nodegroup"]["resources"]["autoScalingGroups"][0]["name"]
    try:
        await aws.call("ec2", "create_launch_template", LaunchTemplateName=name, LaunchTemplateData=data)
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidLaunchTemplateName.AlreadyExistsException":
            raise
        await aws.call("ec2", "create_launch_template_version", LaunchTemplateName=name, LaunchTemplateData=data)
    tags = {
        f"kubernetes.io/cluster/{cluster}": "owned",
        "eks:cluster-name": cluster,
        "eks:nodegroup-name": group,
        "Name": f"{cluster}-{group}",
    }
    found = await _scaling_group(aws, name)
    if not found:
        await aws.call(
            "autoscaling",
            "create_auto_scaling_group",
            AutoScalingGroupName=name,
            LaunchTemplate={"LaunchTemplateName": name, "Version": "$Latest"},
            MinSize=0,
            MaxSize=_LARGEST,
            DesiredCapacity=0,
            VPCZoneIdentifier=subnet,
            CapacityRebalance=spot,
            Tags=[{"Key": key, "Value": value, "PropagateAtLaunch": True} for key, value in tags.items()],
        )
        found = await _scaling_group(aws, name)
    return found


async def _scaling_group(aws: Aws, name: str) -> dict[str, Any]:
    """As Auto Scaling describes it; empty if there is none."""
    reply = await aws.call("autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[name])
    found: list[dict[str, Any]] = reply["AutoScalingGroups"]
    return found[0] if found else {}


async def _ensure_group(
    aws: Aws,
    settings: Settings,
    instance_type: str,
    group: str,
    labels: dict[str, str],
    subnets: list[str],
    *,
    spot: bool,
) -> None:
    try:
        await aws.call(
            "eks",
            "create_nodegroup",
            clusterName=settings.cluster_name,
            nodegroupName=group,
            scalingConfig={"minSize": 0, "maxSize": _LARGEST, "desiredSize": 1},
            instanceTypes=[instance_type],
            subnets=subnets[:1],
            nodeRole=f"arn:aws:iam::{settings.account}:role/{GROUP_ROLE}-{settings.cluster_name}",
            capacityType="SPOT" if spot else "ON_DEMAND",
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
