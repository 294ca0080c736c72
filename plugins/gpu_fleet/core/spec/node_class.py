"""The node class: the defaults of every pool's EC2NodeClass."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_POOL
from gpu_fleet.core.spec.base import Pattern, SpecModel, visible
from gpu_fleet.core.spec.capacity import MOST_TERMS, ReservationTerm
from gpu_fleet.core.spec.problems import shortened


def _role(value: str) -> str:
    arn = re.fullmatch(r"arn:[\w-]+:iam::[0-9]*:(role|instance-profile)/(?:\S*/)?([\w+=,.@-]+)", value, re.ASCII)
    if arn is not None and arn[1] == "role":
        return f"{value!r} is the role's ARN; write the role's name, {arn[2]}"
    if arn is not None:
        return (
            f"{value!r} is an instance profile; write the name of the role in it (Karpenter makes the profile itself)"
        )
    return (
        f"{shortened(value)} is not the name of an IAM role; write its name, at most 64 letters, digits and any of "
        "+ = , . @ - _ (the last part of its ARN)"
    )


RoleName = Annotated[str, Pattern(r"[\w+=,.@-]{1,64}", _role)]

#: Longest AMI alias (CRD of EC2NodeClass, aws/karpenter-provider-aws v1.14 pkg/apis/v1/ec2nodeclass.go).
_LONGEST_ALIAS = 30
#: Longest key and value of an EC2 tag (Amazon EC2 User Guide, 'Tag restrictions').
_LONGEST_TAG_KEY, _LONGEST_TAG_VALUE = 128, 256


def check_ami_alias(alias: str) -> str:
    if re.fullmatch(r"ami-[0-9a-f]+", alias):
        raise ValueError(
            f"{alias!r} is the id of one AMI; write an alias, family@version such as al2023@v20260714, with which "
            "Karpenter chooses the NVIDIA variant for each instance type (it is not an AMI alias)"
        )
    match = re.fullmatch(r"(?P<family>[a-z0-9]+)@(?P<version>\S+)", alias)
    if match is None:
        raise ValueError(f"{alias!r} is not an AMI alias; write family@version, for example al2023@v20260714")
    if match["version"] == "latest":
        raise ValueError(
            f"{alias!r} lets every new AMI drift all nodes; pin a version, for example {match['family']}@v20260714"
        )
    if match["family"] not in ("al2023", "bottlerocket"):
        raise ValueError(
            f"{alias!r}: only al2023 and bottlerocket have NVIDIA variants for Kubernetes 1.33 and later; "
            "write for example al2023@v20260714"
        )
    if len(alias) > _LONGEST_ALIAS:
        raise ValueError(
            f"{alias!r} has {len(alias)} characters, and an EC2NodeClass takes {_LONGEST_ALIAS}; write family@version, "
            f"for example {match['family']}@v20260714"
        )
    return alias


AmiAlias = Annotated[str, Field(json_schema_extra={"maxLength": _LONGEST_ALIAS})]


#: Keys that the EC2NodeClass refuses, besides those that begin with ``kubernetes.io/cluster``
#: (aws/karpenter-provider-aws v1.14.1 pkg/apis/crds/karpenter.k8s.aws_ec2nodeclasses.yaml, ``spec.tags``). ``aws:`` is
#: EC2's own, in any case (Amazon EC2 User Guide, 'Tag your Amazon EC2 resources').
_RESERVED_TAGS = frozenset(
    {"eks:eks-cluster-name", "karpenter.sh/nodepool", "karpenter.sh/nodeclaim", "karpenter.k8s.aws/ec2nodeclass"}
)
#: EC2 takes 50 tags on an instance. Karpenter adds six: those four keys, ``kubernetes.io/cluster/NAME`` and ``Name``
#: (v1.14.1 pkg/utils/utils.go, ``GetTags``; pkg/controllers/nodeclaim/tagging); we add cluster and pool.
_MOST_TAGS = 50 - 6 - 2


class NodeClass(SpecModel):
    """Defaults for every pool's EC2NodeClass."""

    role: RoleName = Field(description="IAM role of the nodes (name, not ARN; at most 64 characters).")
    ami_alias: AmiAlias = Field(
        default="al2023@v20260714", description="AMI family and version; the NVIDIA variant follows the instance type."
    )
    discovery_tag: str = Field(
        min_length=1,
        max_length=256,
        description="Value of the tag `karpenter.sh/discovery` on the subnets and security groups to use.",
    )
    volume_size: int = Field(
        default=100,
        ge=30,
        le=16384,
        description="Root volume in GiB; 100, because CUDA framework images take 15 to 20 GB each.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict, max_length=_MOST_TAGS, description="Extra EC2 tags on instances and volumes."
    )

    capacity_reservations: tuple[ReservationTerm, ...] = Field(
        default=(),
        max_length=MOST_TERMS,
        description="Capacity reservations of every pool with `reserved` among its `capacityTypes`.",
    )

    _alias = field_validator("ami_alias")(check_ami_alias)

    @field_validator("tags")
    @classmethod
    def _tags(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            visible(key)
            visible(text)
            if not 0 < len(key) <= _LONGEST_TAG_KEY:
                raise ValueError(
                    f"tag key {key!r} has {len(key)} characters; write 1 to {_LONGEST_TAG_KEY}, as EC2 takes"
                )
            if len(text) > _LONGEST_TAG_VALUE:
                raise ValueError(
                    f"the value of tag {key!r} has {len(text)} characters; "
                    f"shorten it: EC2 takes at most {_LONGEST_TAG_VALUE}"
                )
            if key.lower().startswith("aws:") or key.startswith("kubernetes.io/cluster") or key in _RESERVED_TAGS:
                raise ValueError(f"tag {key!r} is reserved by Karpenter, EKS or AWS; choose another key")
            if key in (LABEL_CLUSTER, LABEL_POOL):
                raise ValueError(f"tag {key!r} is set by gpu-fleet itself; choose another key")
        return value
