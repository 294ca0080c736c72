"""The EC2 launch templates that Karpenter makes of a node class (aws/karpenter-provider-aws v1.14.1
``pkg/providers/launchtemplate``; their tags: ``pkg/utils/utils.go``, ``GetTags``). They go with the class."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws.client import Aws

Object = dict[str, Any]

_EXISTS = "InvalidLaunchTemplateName.AlreadyExistsException"
_MISSING = "InvalidLaunchTemplateName.NotFoundException"


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


def template_tags(node_class: Object, pool: str, cluster: str) -> dict[str, str]:
    """Of a launch template; instances have some more."""
    return {
        **(node_class["spec"].get("tags") or {}),
        f"kubernetes.io/cluster/{cluster}": "owned",
        "eks:eks-cluster-name": cluster,
        "karpenter.k8s.aws/ec2nodeclass": node_class["metadata"]["name"],
        "karpenter.sh/nodepool": pool,
    }
