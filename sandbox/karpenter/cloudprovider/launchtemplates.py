"""The EC2 launch templates that Karpenter makes of a node class (aws/karpenter-provider-aws v1.14.1
``pkg/providers/launchtemplate``; their tags: ``pkg/utils/utils.go``, ``GetTags``). They go with the class."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws.client import Aws
from sandbox.kube.quantities import parse

Object = dict[str, Any]

_EXISTS = "InvalidLaunchTemplateName.AlreadyExistsException"
_MISSING = "InvalidLaunchTemplateName.NotFoundException"
#: ``pkg/providers/amifamily/resolver.go``, DefaultEBS.
_AL2023_DEVICE: Object = {
    "deviceName": "/dev/xvda",
    "ebs": {"encrypted": True, "volumeType": "gp3", "volumeSize": "20Gi"},
}


class LaunchTemplates:
    """:param cluster: the EKS cluster's name."""

    def __init__(self, aws: Aws, cluster: str) -> None:
        self._aws = aws
        self._cluster = cluster
        self._known: set[str] = set()

    async def ensure(self, node_class: Object, pool: str, image: str) -> str:
        """The name of the template of an image, after it has been created if need be."""
        tags = template_tags(node_class, pool, self._cluster)
        digest = hashlib.sha256(json.dumps([node_class["spec"], tags, image], sort_keys=True).encode()).hexdigest()
        name = f"karpenter.k8s.aws/{int(digest[:15], 16)}"
        if name in self._known:
            return name
        listed = [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
        try:
            await self._aws.call(
                "ec2",
                "create_launch_template",
                LaunchTemplateName=name,
                LaunchTemplateData={"ImageId": image},
                TagSpecifications=[{"ResourceType": "launch-template", "Tags": listed}],
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != _EXISTS:
                raise
        self._known.add(name)
        return name

    async def delete_all(self, node_class: Object) -> None:
        """Those of the class, found by their tags."""
        filters = [
            {"Name": "tag:eks:eks-cluster-name", "Values": [self._cluster]},
            {"Name": "tag:karpenter.k8s.aws/ec2nodeclass", "Values": [node_class["metadata"]["name"]]},
        ]
        found = await self._aws.paginate("ec2", "describe_launch_templates", "LaunchTemplates[]", Filters=filters)
        for name in (each["LaunchTemplateName"] for each in found):
            try:
                await self._aws.call("ec2", "delete_launch_template", LaunchTemplateName=name)
            except ClientError as error:
                if error.response["Error"]["Code"] != _MISSING:
                    raise
            self._known.discard(name)


def block_devices(node_class: Object) -> list[Object]:
    """EC2's block device mappings of a class (``pkg/providers/launchtemplate/launchtemplate.go``, blockDeviceMappings).

    A class without any has the default of AL2023 (``pkg/providers/amifamily/al2023.go``): 20 GiB of encrypted gp3.
    """
    found = []
    for mapping in node_class["spec"].get("blockDeviceMappings") or [_AL2023_DEVICE]:
        ebs = mapping.get("ebs") or {}
        device: Object = {"DeviceName": mapping["deviceName"], "Ebs": {"VolumeType": ebs.get("volumeType", "gp3")}}
        if "volumeSize" in ebs:
            device["Ebs"]["VolumeSize"] = math.ceil(parse(ebs["volumeSize"]) / 1000 / 2**30)
        if "deleteOnTermination" in ebs:
            device["Ebs"]["DeleteOnTermination"] = bool(ebs["deleteOnTermination"])
        if "encrypted" in ebs:
            device["Ebs"]["Encrypted"] = bool(ebs["encrypted"])
        for key, name in (("iops", "Iops"), ("throughput", "Throughput"), ("snapshotID", "SnapshotId"),
                          ("kmsKeyID", "KmsKeyId")):  # fmt: skip
            if key in ebs:
                device["Ebs"][name] = ebs[key]
        found.append(device)
    return found


def template_tags(node_class: Object, pool: str, cluster: str) -> dict[str, str]:
    """Of a launch template; instances have some more."""
    return {
        **(node_class["spec"].get("tags") or {}),
        f"kubernetes.io/cluster/{cluster}": "owned",
        "eks:eks-cluster-name": cluster,
        "karpenter.k8s.aws/ec2nodeclass": node_class["metadata"]["name"],
        "karpenter.sh/nodepool": pool,
    }
