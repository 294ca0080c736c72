"""Node pools and their node class: which GPUs, how many, how shared, for how long."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from gpu_fleet.core.names import GPU_TAINT_KEY
from gpu_fleet.core.spec.base import (
    DnsLabel,
    Duration,
    DurationOrNever,
    HoursAndMinutes,
    NotEmpty,
    SpecModel,
    label_key,
    label_value,
)
from gpu_fleet.core.spec.cron import check_budget_schedule
from gpu_fleet.core.spec.instances import physical_gpus

InstanceType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$")]
CapacityType = Literal["spot", "on-demand", "reserved"]


#: Longest AMI alias (CRD of EC2NodeClass, aws/karpenter-provider-aws v1.14 pkg/apis/v1/ec2nodeclass.go).
_LONGEST_ALIAS = 30
#: Longest key and value of an EC2 tag (Amazon EC2 User Guide, 'Tag restrictions').
_LONGEST_TAG_KEY, _LONGEST_TAG_VALUE = 128, 256


def _check_ami_alias(alias: str) -> str:
    match = re.fullmatch(r"(?P<family>[a-z0-9]+)@(?P<version>\S+)", alias)
    if match is None:
        raise ValueError(f"{alias!r} is not an AMI alias; write family@version, for example al2023@v20260714")
    if match["version"] == "latest":
        raise ValueError(
            f"{alias!r} lets every new AMI drift all nodes; pin a version, for example {match['family']}@v20260714"
        )
    if match["family"] not in ("al2023", "bottlerocket"):
        raise ValueError(f"{alias!r}: only al2023 and bottlerocket have NVIDIA variants for Kubernetes 1.33 and later")
    if len(alias) > _LONGEST_ALIAS:
        raise ValueError(
            f"{alias!r} has {len(alias)} characters, and an EC2NodeClass takes {_LONGEST_ALIAS}; write family@version, "
            f"for example {match['family']}@v20260714"
        )
    return alias


AmiAlias = Annotated[str, Field(json_schema_extra={"maxLength": _LONGEST_ALIAS})]


class NodeClass(SpecModel):
    """Defaults for every pool's EC2NodeClass."""

    role: str = Field(
        pattern=r"^[\w+=,.@-]{1,64}$", description="IAM role of the nodes (name, not ARN; at most 64 characters)."
    )
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
        description="Root volume in GiB; 100, since CUDA framework images take 15 to 20 GB each.",
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Extra EC2 tags on instances and volumes.")

    _alias = field_validator("ami_alias")(_check_ami_alias)

    @field_validator("tags")
    @classmethod
    def _tags(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if not 0 < len(key) <= _LONGEST_TAG_KEY:
                raise ValueError(f"tag key {key!r} has {len(key)} characters; EC2 takes 1 to {_LONGEST_TAG_KEY}")
            if len(text) > _LONGEST_TAG_VALUE:
                raise ValueError(
                    f"the value of tag {key!r} has {len(text)} characters; EC2 takes at most {_LONGEST_TAG_VALUE}"
                )
            if key.startswith(("karpenter.sh/", "karpenter.k8s.aws/", "kubernetes.io/cluster/", "aws:", "eks:")):
                raise ValueError(f"tag {key!r} is reserved by Karpenter, EKS or AWS; choose another key")
        return value


def _check_replicas(value: int) -> int:
    if value < 2:
        raise ValueError(
            f"{value} is not sharing, and the device plugin fails on the node with fewer than 2 replicas; "
            "write 2 or more, or sharing: {mode: exclusive}"
        )
    return value


def _check_rename(value: bool) -> bool:
    if value:
        raise ValueError(
            "needs a NodeOverlay, which this version does not manage: without it Karpenter waits for "
            "nvidia.com/gpu for ever; set it to false"
        )
    return value


class Exclusive(SpecModel):
    """Whole GPUs: one container per GPU."""

    mode: Literal["exclusive"] = "exclusive"


class TimeSlicing(SpecModel):
    """Time-slicing: each GPU is advertised `replicas` times. No memory isolation between the sharers."""

    mode: Literal["timeSlicing"]
    replicas: int = Field(
        le=48,
        description="How often each physical GPU is advertised; at least 2 (the device plugin refuses 1 on the node).",
    )
    fail_requests_greater_than_one: bool = Field(
        default=True, description="Refuse a container that asks for 2 replicas: it would not get twice the GPU."
    )
    rename_by_default: bool = Field(
        default=False,
        description="Must be false: Karpenter would wait for nvidia.com/gpu, the node offers nvidia.com/gpu.shared.",
    )

    _replicas = field_validator("replicas")(_check_replicas)
    _rename = field_validator("rename_by_default")(_check_rename)


class Mps(SpecModel):
    """CUDA Multi-Process Service: each GPU is advertised `replicas` times, each client limited to 1/replicas of its
    memory and threads. NVIDIA calls it experimental.
    """

    mode: Literal["mps"]
    replicas: int = Field(
        le=48,
        description="How often each physical GPU is advertised; 2 to 48 (clients of one MPS server since Volta).",
    )
    fail_requests_greater_than_one: bool = Field(
        default=True, description="Must be true: under MPS the device plugin refuses such requests in any case."
    )
    rename_by_default: bool = Field(
        default=False,
        description="Must be false: Karpenter would wait for nvidia.com/gpu, the node offers nvidia.com/gpu.shared.",
    )

    _replicas = field_validator("replicas")(_check_replicas)
    _rename = field_validator("rename_by_default")(_check_rename)

    @field_validator("fail_requests_greater_than_one")
    @classmethod
    def _always_refused(cls, value: bool) -> bool:
        if not value:
            raise ValueError(
                "the device plugin refuses requests for several shares under MPS whatever it is told; remove it"
            )
        return value


Shared = TimeSlicing | Mps
Sharing = Annotated[Exclusive | TimeSlicing | Mps, Field(discriminator="mode")]


class Taint(SpecModel):
    """A taint of a pool's nodes."""

    key: Annotated[str, AfterValidator(label_key)] = Field(max_length=317)
    value: Annotated[str, AfterValidator(label_value)] = Field(default="", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Limits(SpecModel):
    """Upper bounds of a pool. Nodes, not GPUs: a GPU limit counts shared replicas once a node is initialized."""

    nodes: int = Field(ge=0, description="Most nodes Karpenter may have in this pool at once.")


class Capacity(SpecModel):
    """What happens to capacity after validation."""

    hold: int = Field(
        default=0,
        ge=0,
        le=1440,
        description="Minutes to keep the validated nodes although no job uses them (paid).",
    )


class Budget(SpecModel):
    """A disruption budget (Karpenter v1)."""

    nodes: str = Field(
        pattern=r"^((100|[0-9]{1,2})%|[0-9]+)$", description="How many nodes may be disrupted at once: '10%' or '1'."
    )
    schedule: str | None = Field(default=None, description="Cron in UTC at which the budget becomes active.")
    duration: HoursAndMinutes | None = Field(
        default=None, description="How long it stays active after `schedule`, in hours and minutes."
    )
    reasons: tuple[Literal["Underutilized", "Empty", "Drifted"], ...] = Field(default=())

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        return None if value is None else check_budget_schedule(value)


class Disruption(SpecModel):
    """When Karpenter may remove nodes by itself."""

    consolidation_policy: Literal["WhenEmpty", "WhenEmptyOrUnderutilized", "Balanced"] = Field(
        default="WhenEmpty", description="WhenEmpty: GPU jobs are rarely restartable, so only idle nodes go."
    )
    consolidate_after: DurationOrNever = Field(
        default=DurationOrNever("5m"), description="How long a node must be idle first; required by Karpenter."
    )
    budgets: tuple[Budget, ...] = Field(default=(Budget(nodes="10%"),))


class NodePool(SpecModel):
    """One pool: a NodePool and an EC2NodeClass of the same name."""

    manage: bool = Field(
        default=True,
        description="false: the NodePool and its EC2NodeClass belong to others and are only gated on.",
    )
    name: DnsLabel = Field(description="Name of the NodePool, of its EC2NodeClass and of the pool in Airflow.")
    instance_types: Annotated[tuple[InstanceType, ...], NotEmpty] = Field(
        default=("g5.xlarge", "g5.2xlarge"),
        description="EC2 instance types. Keep them few: left free, Karpenter serves sixteen 1-GPU pods with two p4d.",
    )
    capacity_types: Annotated[tuple[CapacityType, ...], NotEmpty] = Field(default=("spot", "on-demand"))
    wanted_nodes: int = Field(default=0, ge=0, le=200, description="Nodes to bring up and validate in a lifecycle run.")
    limits: Limits | None = Field(
        default=None,
        description="Default: one node more than wanted, so that a drifted node can be replaced before it goes.",
    )
    sharing: Sharing = Field(
        default_factory=Exclusive,
        description="How each GPU is shared. A change is for new nodes: those that live keep theirs, and do not count.",
    )
    capacity: Capacity = Field(default_factory=Capacity)
    disruption: Disruption = Field(default_factory=Disruption)
    expire_after: DurationOrNever = Field(
        default=DurationOrNever("720h"),
        description="Age at which Karpenter replaces a node (its default: 30 days).",
    )
    termination_grace_period: Duration | None = Field(
        default=Duration("10m"),
        description="After this Karpenter deletes pods past PDBs; without it a PDB can keep a node paid for ever.",
    )
    taints: tuple[Taint, ...] = Field(
        default=(Taint(key=GPU_TAINT_KEY, value="true", effect="NoSchedule"),),
        description="Default nvidia.com/gpu=true:NoSchedule, so that only pods that tolerate it cost a GPU node.",
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Extra labels on the nodes.")
    ami_alias: AmiAlias | None = Field(default=None, description="Overrides nodeClass.amiAlias for this pool.")

    @field_validator("ami_alias")
    @classmethod
    def _alias(cls, value: str | None) -> str | None:
        return None if value is None else _check_ami_alias(value)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            label_key(key)
            label_value(text)
        return value

    @field_validator("expire_after")
    @classmethod
    def _lives_for_some_time(cls, value: DurationOrNever) -> DurationOrNever:
        if not value.never and value.seconds == 0:
            raise ValueError(f"{value!r} makes Karpenter replace each node at once; write for example 720h, or Never")
        return value

    @property
    def replicas(self) -> int:
        """How often each physical GPU is advertised: 1 for exclusive use."""
        return self.sharing.replicas if isinstance(self.sharing, Shared) else 1

    @property
    def shared(self) -> bool:
        return isinstance(self.sharing, Shared)

    @property
    def mps(self) -> bool:
        return isinstance(self.sharing, Mps)

    @property
    def refuses_two(self) -> bool:
        """Whether a container that asks for two shares is to be refused (``failRequestsGreaterThanOne``)."""
        return isinstance(self.sharing, Shared) and self.sharing.fail_requests_greater_than_one

    @property
    def config_entry(self) -> str:
        """Key of the device plugin's config for this pool: ``exclusive``, ``time-slicing-4``, ``time-slicing-4-any``,
        ``mps-4``.

        ``-any`` marks ``failRequestsGreaterThanOne: false``: another config, so another key.
        """
        match self.sharing:
            case TimeSlicing(replicas=replicas):
                return f"time-slicing-{replicas}{'' if self.refuses_two else '-any'}"
            case Mps(replicas=replicas):
                return f"mps-{replicas}"
            case Exclusive():
                return "exclusive"

    @property
    def sharing_words(self) -> str:
        """For people: ``exclusive``, ``time-slicing, 4 per GPU``, ``MPS, 4 per GPU``."""
        if not self.shared:
            return "exclusive"
        return f"{'MPS' if self.mps else 'time-slicing'}, {self.replicas} per GPU"

    @property
    def node_limit(self) -> int:
        """``limits.nodes``, or its default of one more than wanted."""
        return self.limits.nodes if self.limits else self.wanted_nodes + 1

    @property
    def gpus_per_node(self) -> int | None:
        """Physical GPUs per node as far as the table of instance types knows; never to be used as a proof."""
        return physical_gpus(self.instance_types[0])
