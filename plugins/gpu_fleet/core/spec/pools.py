"""Node pools: which GPUs, how many, how long a node lives, and when Karpenter may remove it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator

from gpu_fleet.core.kubernetes.names import GPU_TAINT_KEY
from gpu_fleet.core.spec.base import NotEmpty, Pattern, SpecModel
from gpu_fleet.core.spec.capacity import MOST_TERMS, Capacity, CapacityBlock, ReservationTerm
from gpu_fleet.core.spec.capacity.admission import Admission
from gpu_fleet.core.spec.instances import physical_gpus
from gpu_fleet.core.spec.node_class import AmiAlias, PoolNodeClass, check_ami_alias
from gpu_fleet.core.spec.sharing import Exclusive, Mps, Shared, Sharing, TimeSlicing
from gpu_fleet.core.spec.types.cron import check_budget_schedule
from gpu_fleet.core.spec.types.durations import Duration, DurationOrNever, HoursAndMinutes
from gpu_fleet.core.spec.types.ec2 import CapacityType, InstanceType
from gpu_fleet.core.spec.types.names import DnsLabel, label_key, label_value


def _budget_nodes(value: str) -> str:
    return f'{value!r} is not a number of nodes; write a count or a percentage in quotes, for example "1" or "10%"'


class Taint(SpecModel):
    """A taint of a pool's nodes."""

    key: Annotated[str, AfterValidator(label_key)] = Field(max_length=317)
    value: Annotated[str, AfterValidator(label_value)] = Field(default="", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Limits(SpecModel):
    """Upper bounds of a pool."""

    nodes: int = Field(
        ge=0,
        le=100_000,
        description="Maximum number of nodes that Karpenter may buy for this pool. Karpenter checks limits.nodes only "
        "between its scheduling passes, so the NodePool also gets limits.cpu, the vCPUs of that many nodes of the "
        "largest type, which Karpenter checks within a pass. While a node replaces another (drift), both may exist.",
    )


class Budget(SpecModel):
    """A disruption budget (Karpenter v1)."""

    nodes: Annotated[str, Pattern(r"(100|[0-9]{1,2})%|[0-9]{1,9}", _budget_nodes)] = Field(
        description="How many nodes may be disrupted at once: '10%' or '1'."
    )
    schedule: str | None = Field(default=None, description="Cron (UTC) at which the budget becomes active.")
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
        default="WhenEmpty", description="WhenEmpty: remove only idle nodes, because GPU jobs are rarely restartable."
    )
    consolidate_after: DurationOrNever = Field(
        default=DurationOrNever("5m"), description="How long a node must be idle first; required by Karpenter."
    )
    budgets: tuple[Budget, ...] = Field(
        default=(Budget(nodes="10%"),),
        max_length=50,
        description="Karpenter applies the strictest of all budgets that match. Unless one of them names Drifted in "
        "`reasons`, {nodes: '0', reasons: [Drifted]} is added: drifted nodes are reported, and replaced only on "
        "request (replaceDrifted). A budget of yours for Drifted lets Karpenter evict running pods from drifted nodes.",
    )
    replace_at_once: int = Field(
        default=1,
        ge=1,
        le=200,
        description="Maximum number of drifted, idle nodes that one lifecycle run with replaceDrifted: idle replaces "
        "in this pool; limits.nodes must have room for each new node, because it comes before the old one is removed.",
    )


class NodePool(SpecModel):
    """One pool: a NodePool and an EC2NodeClass of the same name."""

    manage: bool = Field(
        default=True,
        description="false: the NodePool and its EC2NodeClass belong to others; the package only waits for them. Our "
        "device plugin runs there only if their owner labels the nodes gpu-fleet.io/device-plugin=true.",
    )
    name: DnsLabel = Field(description="Name of the NodePool, of its EC2NodeClass and of the pool in Airflow.")
    instance_types: Annotated[tuple[InstanceType, ...], NotEmpty] = Field(
        default=("g5.xlarge", "g5.2xlarge"),
        max_length=100,
        description="EC2 instance types. List only a few: with a free choice, Karpenter serves sixteen 1-GPU pods with "
        "two p4d.",
    )
    capacity_types: Annotated[tuple[CapacityType, ...], NotEmpty] = Field(default=("spot", "on-demand"), max_length=10)
    capacity_reservations: tuple[ReservationTerm, ...] = Field(
        default=(),
        max_length=MOST_TERMS,
        description="Capacity reservations into which Karpenter launches the pool's nodes, with `reserved` among "
        "`capacityTypes`; other types beside it are used when the reservations are full. Overrides "
        "nodeClass.capacityReservations.",
    )
    capacity_block: CapacityBlock | None = Field(
        default=None,
        description="The reservations are EC2 Capacity Blocks for ML, with `capacityTypes: [reserved]`: a lifecycle "
        "run waits for the block to begin, and the nodes are drained before its end. `{}` takes the defaults.",
    )
    wanted_nodes: int = Field(default=0, ge=0, le=200, description="Nodes to bring up and validate in a lifecycle run.")
    limits: Limits | None = Field(
        default=None,
        description="Default: one node more than wanted, so that a drifted node can be replaced before it is removed; "
        "with wantedNodes 0, no node. Set it to let pending pods buy more nodes, also from 0.",
    )
    sharing: Sharing = Field(
        default_factory=Exclusive,
        description="How each GPU is shared. A change applies to new nodes; existing nodes keep their sharing and do "
        "not count as capacity.",
    )
    capacity: Capacity = Field(default_factory=Capacity)
    admission: Admission | None = Field(
        default=None,
        description="Overrides validation.admission for this pool. A change makes the pool's nodes drift, because it "
        "changes their startup taints.",
    )
    disruption: Disruption = Field(default_factory=Disruption)
    expire_after: DurationOrNever = Field(
        default=DurationOrNever("Never"),
        description="Age at which Karpenter removes a node, whatever runs there: no budget prevents it, and no node "
        "replaces it first. Karpenter evicts the pods at once. With terminationGracePeriod null, pods with "
        "karpenter.sh/do-not-disrupt or a blocking PodDisruptionBudget keep the tainted node, which is paid for, until "
        "they end; Karpenter does not wait for pods that tolerate every taint. Never: only empty nodes are removed.",
    )
    termination_grace_period: Duration | None = Field(
        default=None,
        description="How long a node that is being removed waits for its pods. Then Karpenter deletes them, whatever "
        "PodDisruptionBudgets and karpenter.sh/do-not-disrupt say, and drift and expireAfter apply to such nodes, too. "
        "null: running jobs end first, and a pod that never ends keeps its node, which is paid for. Set it longer than "
        "your longest job (48h, 72h).",
    )
    taints: tuple[Taint, ...] = Field(
        default=(Taint(key=GPU_TAINT_KEY, value="true", effect="NoSchedule"),),
        max_length=50,
        description="Default: nvidia.com/gpu=true:NoSchedule, so that only pods that tolerate it use a GPU node.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        max_length=100,
        description="Extra labels on the nodes. With devicePlugin.manage: false also nvidia.com/device-plugin.config, "
        "if the entry in the plugin's ConfigMap has another name than this package gives it.",
    )
    weight: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Of the NodePools that a pod can use, Karpenter buys from the one with the highest weight. "
        "Default: by list price per GPU in include/prices/ec2-REGION.yaml, cheapest first (the most expensive pool has "
        "no weight, which counts as 0; pools without a price there come last); no other price changes it. Of equal "
        "weights, the name that is last in the alphabet comes first.",
    )
    ami_alias: AmiAlias | None = Field(default=None, description="Overrides nodeClass.amiAlias for this pool.")
    node_class: PoolNodeClass = Field(default_factory=PoolNodeClass)

    #: Set by the cluster spec: nodes of this pool bring a device plugin in their AMI, which ours must keep off.
    _built_in_plugin: bool = PrivateAttr(default=False)

    @field_validator("ami_alias")
    @classmethod
    def _alias(cls, value: str | None) -> str | None:
        return None if value is None else check_ami_alias(value)

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
            raise ValueError(f"{value!r} makes Karpenter replace every node at once; write for example 720h, or Never")
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
    def built_in_plugin(self) -> bool:
        """Whether the AMI's own device plugin serves the pool's nodes, and neither our release nor one of others."""
        return self._built_in_plugin

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
        """In words: ``exclusive``, ``time-slicing, 4 per GPU``, ``MPS, 4 per GPU``."""
        if not self.shared:
            return "exclusive"
        return f"{'MPS' if self.mps else 'time-slicing'}, {self.replicas} per GPU"

    @property
    def needed_nodes(self) -> int:
        """The nodes without which a run fails: ``wantedNodes``, or fewer by ``capacity.minimum``."""
        least = self.capacity.minimum
        return self.wanted_nodes if least is None else min(least, self.wanted_nodes)

    @property
    def node_limit(self) -> int:
        """``limits.nodes``, or its default: one node more than wanted, and 0 if none is wanted."""
        if self.limits is not None:
            return self.limits.nodes
        return self.wanted_nodes + 1 if self.wanted_nodes else 0

    @property
    def gpus_per_node(self) -> int | None:
        """Physical GPUs per node according to the catalogue of instance types; never use it as a proof."""
        return next((count for name in self.instance_types if (count := physical_gpus(name)) is not None), None)
