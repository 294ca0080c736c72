"""The AMI of a pool's nodes: an alias with which Karpenter chooses the NVIDIA variant, or AMIs of the user's."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpu_fleet.core.spec.base import Pattern, SpecModel
from gpu_fleet.core.spec.types.selecting import SelectingTags

#: Longest AMI alias (CRD of EC2NodeClass, aws/karpenter-provider-aws v1.14 pkg/apis/v1/ec2nodeclass.go).
_LONGEST_ALIAS = 30


class Family(StrEnum):
    """The AMI families with NVIDIA variants, as an EC2NodeClass names them (``spec.amiFamily``)."""

    AL2023 = "AL2023"
    BOTTLEROCKET = "Bottlerocket"


def check_ami_alias(alias: str) -> str:
    if re.fullmatch(r"ami-[0-9a-f]+", alias):
        raise ValueError(
            f"{alias!r} is the id of one AMI; write an alias, family@version such as al2023@v20260714, with which "
            "Karpenter chooses the NVIDIA variant for each instance type (it is not an AMI alias), or the id into "
            "nodeClass.ami.ids"
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


def _image(value: str) -> str:
    return f"{value!r} is not the id of an AMI; write for example ami-0123456789abcdef0"


def _owner(value: str) -> str:
    return f"{value!r} is not an owner of AMIs; write an account number (12 digits, in quotes), self or amazon"


ImageId = Annotated[str, Pattern(r"ami-[0-9a-z]+", _image)]
ImageOwner = Annotated[str, Pattern(r"[0-9]{12}|self|amazon|aws-marketplace", _owner)]


class Ami(SpecModel):
    """AMIs of the user's instead of an alias. Karpenter takes the newest one that fits the instance type."""

    family: Literal["AL2023", "Bottlerocket"] = Field(
        description="What the AMI is built on: it decides the form of `userData` and which volume holds the images."
    )
    ids: tuple[ImageId, ...] = Field(default=(), max_length=30, description="AMI ids, one per architecture.")
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Name of the AMI; `*` stands for any text, and then every new AMI that matches drifts the nodes.",
    )
    owner: ImageOwner | None = Field(
        default=None, description="Owner of the AMI: account number, `self` or `amazon`; for `name` and `tags`."
    )
    tags: SelectingTags = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> Ami:
        by_name = self.name is not None or bool(self.tags)
        if not self.ids and not by_name:
            raise ValueError("selects no AMI; give ids, name or tags (an owner alone selects every AMI of that owner)")
        if self.ids and (by_name or self.owner is not None):
            raise ValueError("ids cannot be combined with name, owner or tags in an EC2NodeClass; give one of them")
        return self
