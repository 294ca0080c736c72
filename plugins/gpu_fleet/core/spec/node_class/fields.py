"""The node class: what every pool's EC2NodeClass says, and what a pool says otherwise."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from gpu_fleet.core.spec.base import Pattern, SpecModel
from gpu_fleet.core.spec.capacity import MOST_TERMS, ReservationTerm
from gpu_fleet.core.spec.node_class.ami import Ami, AmiAlias, Family, check_ami_alias
from gpu_fleet.core.spec.node_class.extra import check_extra
from gpu_fleet.core.spec.node_class.kubelet import Kubelet
from gpu_fleet.core.spec.node_class.network import (
    MetadataOptions,
    NetworkInterface,
    PlacementGroup,
    SecurityGroupTerm,
    SubnetTerm,
    check_interfaces,
)
from gpu_fleet.core.spec.node_class.tags import MOST_TAGS, check_tags
from gpu_fleet.core.spec.node_class.volume import Volume
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

#: Longest user data of a cluster file: EC2 takes 16 KiB (EC2 User Guide, 'Run commands when you launch an EC2
#: instance'), of which Karpenter's own NodeConfig needs about 2 (endpoint, certificate authority, labels, taints).
LONGEST_USER_DATA = 14 * 1024
_USER_DATA = (
    "User data that is merged with what Karpenter and this package need. AL2023: a NodeConfig (YAML), a script, or a "
    "MIME archive of both. Bottlerocket: TOML. Checked by `validate`; a change drifts the nodes."
)


class NodeClassFields(SpecModel):
    """What `nodeClass` says for all pools, and `nodeClass` of a pool for that pool alone."""

    MULTILINE: ClassVar[frozenset[str]] = frozenset({"user_data"})

    ami: Ami | None = Field(default=None, description="AMIs of your own instead of `amiAlias`.")
    volume: Volume | None = Field(
        default=None,
        description="The volume with images, containers and logs: the root volume of AL2023, the data volume of "
        "Bottlerocket. null: gp3 with 125 MiB/s.",
    )
    os_volume_size: int | None = Field(
        default=None,
        ge=4,
        le=64,
        description="Bottlerocket's operating system volume in GiB; null: what the AMI says.",
    )
    instance_store_policy: Literal["RAID0", "none"] | None = Field(
        default=None,
        description="RAID0: images, containers and logs are on the instance's own NVMe disks instead of the volume. "
        "null: not used, unless fastStart decides.",
    )
    kubelet: Kubelet | None = Field(default=None, description="Settings of the kubelet that Karpenter counts with.")
    user_data: str | None = Field(default=None, max_length=LONGEST_USER_DATA, description=_USER_DATA)
    network_interfaces: tuple[NetworkInterface, ...] | None = Field(
        default=None,
        max_length=150,
        description="Interfaces of every node. null: one, and EFA where pods request vpc.amazonaws.com/efa.",
    )
    placement_group: PlacementGroup | None = Field(
        default=None, description="Placement group for all nodes, for example a cluster group for EFA."
    )
    subnets: Annotated[tuple[SubnetTerm, ...], Field(min_length=1)] | None = Field(
        default=None, max_length=30, description="Subnets of the nodes; null: those with the discovery tag."
    )
    security_groups: Annotated[tuple[SecurityGroupTerm, ...], Field(min_length=1)] | None = Field(
        default=None, max_length=30, description="Security groups of the nodes; null: those with the discovery tag."
    )
    associate_public_ip_address: bool | None = Field(
        default=None,
        alias="associatePublicIPAddress",
        description="Whether nodes get a public address; null: as the subnet says.",
    )
    detailed_monitoring: bool | None = Field(
        default=None, description="CloudWatch metrics of the instances every minute instead of every five, charged."
    )
    metadata_options: MetadataOptions | None = Field(
        default=None, description="Instance metadata service; null: IMDSv2 with one hop."
    )
    fast_start: bool | None = Field(
        default=None,
        description="true: nodes pull large images fast. Images go to the instance's NVMe disks (RAID0) if all types "
        "have them, else to a gp3 volume of 600 MiB/s; images are pulled and unpacked in parallel where AMI and types "
        "are large enough. `validate` says what it does to each pool.",
    )
    extra: dict[str, Any] | None = Field(
        default=None,
        description="Further fields of the EC2NodeClass, as they are: connectionTracking, context, cpuOptions, "
        "ipPrefixCount. Checked against its schema.",
    )

    @field_validator("user_data")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        hidden = next((each for each in value or "" if not (each.isprintable() or each in "\n\r\t")), None)
        if hidden is not None:
            raise ValueError(f"contains the invisible character {hidden!r}; remove it")
        return value

    @field_validator("network_interfaces")
    @classmethod
    def _interfaces(cls, value: tuple[NetworkInterface, ...] | None) -> tuple[NetworkInterface, ...] | None:
        check_interfaces(value or ())
        return value

    @field_validator("extra")
    @classmethod
    def _known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        check_extra(value or {})
        return value


class NodeClass(NodeClassFields):
    """Defaults for every pool's EC2NodeClass."""

    role: RoleName = Field(description="IAM role of the nodes (name, not ARN; at most 64 characters).")
    ami_alias: AmiAlias = Field(
        default="al2023@v20260714", description="AMI family and version; the NVIDIA variant follows the instance type."
    )
    discovery_tag: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Value of the tag `karpenter.sh/discovery` on the subnets and security groups to use. Needed "
        "unless `subnets` and `securityGroups` are given.",
    )
    volume_size: int = Field(
        default=100,
        ge=30,
        le=16384,
        description="Volume with images, in GiB; 100, because CUDA framework images take 15 to 20 GB each.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict, max_length=MOST_TAGS, description="Extra EC2 tags on instances and volumes."
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
        check_tags(value)
        return value

    @property
    def family(self) -> Family:
        if self.ami is not None:
            return Family(self.ami.family)
        return Family.BOTTLEROCKET if self.ami_alias.startswith("bottlerocket@") else Family.AL2023

    @property
    def version(self) -> str:
        """Of the AMI's alias; empty where the AMI is selected in another way."""
        return "" if self.ami is not None else self.ami_alias.partition("@")[2]


class PoolNodeClass(NodeClassFields):
    """What one pool has otherwise. Each field that is given replaces that of `nodeClass`; null takes it over."""

    volume_size: int | None = Field(
        default=None, ge=30, le=16384, description="Overrides nodeClass.volumeSize for this pool."
    )
    tags: dict[str, str] | None = Field(
        default=None, max_length=MOST_TAGS, description="Overrides nodeClass.tags for this pool."
    )

    @field_validator("tags")
    @classmethod
    def _tags(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        check_tags(value or {})
        return value

    @property
    def given(self) -> dict[str, Any]:
        """The fields that this pool has of its own."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


def resolved(defaults: NodeClass, own: PoolNodeClass, ami_alias: str | None) -> NodeClass:
    """The node class of a pool: its own fields, else those for all pools.

    :param ami_alias: the pool's own, which also replaces ``ami`` of ``defaults``.
    """
    changes = own.given
    if ami_alias is not None:
        changes = {"ami": None, "ami_alias": ami_alias, **changes}
    return defaults.model_copy(update=changes) if changes else defaults
