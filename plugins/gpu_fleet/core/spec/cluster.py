"""The cluster spec itself: one YAML file, one cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec.base import NotEmpty, SpecModel
from gpu_fleet.core.spec.capacity import ReservationTerm
from gpu_fleet.core.spec.capacity.admission import is_gated
from gpu_fleet.core.spec.components import DevicePlugin, Karpenter, RuntimeClass
from gpu_fleet.core.spec.interruptions import Interruptions
from gpu_fleet.core.spec.node_class import Family, NodeClass, resolved
from gpu_fleet.core.spec.operations import Deadlines, Drain, Teardown, Validation
from gpu_fleet.core.spec.places import Aws, Cluster
from gpu_fleet.core.spec.pools import NodePool
from gpu_fleet.core.spec.problems import SpecErrors, problems_of
from gpu_fleet.core.spec.rules import RULES
from gpu_fleet.core.spec.types.cron import check_schedule
from gpu_fleet.core.spec.types.names import DnsLabel

#: Pools of one cluster: with 100 a lifecycle has about 1,450 tasks, which take Airflow seconds to parse and to schedule
#: (``bench/parse.py --pools 100``). For more, use another cluster, or fewer pools with more instance types.
MOST_POOLS = 100


class ClusterSpec(SpecModel):
    """The wanted state of one cluster. Frozen: a run uses the copy that its first task froze."""

    name: DnsLabel = Field(description="Equals the file's stem; part of the DAG ids, for example gpu_lifecycle.demo.")
    state: Literal["present", "absent"] = Field(
        default="present", description="absent: tear the cluster's GPU capacity down, then delete the file."
    )
    owners: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NotEmpty] = Field(
        default=("platform",), description="Shown as the owner of the DAGs in Airflow."
    )
    aws: Aws
    cluster: Cluster
    karpenter: Karpenter = Field(default_factory=Karpenter)
    runtime_class: RuntimeClass = Field(default_factory=RuntimeClass)
    node_class: NodeClass
    node_pools: Annotated[tuple[NodePool, ...], NotEmpty] = Field(
        max_length=MOST_POOLS,
        description=f"At most {MOST_POOLS}: each has about fifteen tasks of its own in the lifecycle's DAG.",
    )
    device_plugin: DevicePlugin = Field(default_factory=DevicePlugin)
    validation: Validation = Field(default_factory=Validation)
    drain: Drain = Field(default_factory=Drain)
    interruptions: Interruptions = Field(default_factory=Interruptions)
    teardown: Teardown = Field(default_factory=Teardown)
    deadlines: Deadlines = Field(default_factory=Deadlines)
    schedule: str | None = Field(
        default=None, description="Cron (UTC) of the revalidation, or @daily and the like; null: only on request."
    )

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        return None if value is None else check_schedule(value)

    @model_validator(mode="after")
    def _plugins(self) -> ClusterSpec:
        for pool in self.node_pools:
            # With devicePlugin.manage: false the labels of existing nodes stay what they are.
            pool._built_in_plugin = self.device_plugin.manage and self.brings_plugin(pool)
        return self

    @model_validator(mode="after")
    def _rules(self) -> ClusterSpec:
        problems = [problem for rule in RULES for problem in rule(self)]
        if problems:
            # A validator can raise only one error: its context has the list, which problems_of() unpacks.
            raise PydanticCustomError("cluster_rules", "rules of the cluster spec", {"problems": problems})
        return self

    def pool(self, name: str) -> NodePool:
        """
        :raises SpecError: if there is no such pool; names the pools there are.
        """
        for pool in self.node_pools:
            if pool.name == name:
                return pool
        known = ", ".join(pool.name for pool in self.node_pools)
        raise SpecError(f"cluster {self.name} has no pool {name!r}", field="pool", remedy=f"one of: {known}")

    @property
    def pool_names(self) -> tuple[str, ...]:
        return tuple(pool.name for pool in self.node_pools)

    @property
    def region(self) -> str:
        return self.aws.region

    @property
    def interruption_handler(self) -> str:
        """``interruptions.handler``, or its default: ``karpenter`` where Karpenter has a queue, else ``gpu-fleet``."""
        chosen = self.interruptions.handler
        return chosen or ("karpenter" if self.karpenter.interruption_queue else "gpu-fleet")

    def gated(self, pool: NodePool) -> bool:
        """Whether a pool's new nodes take users' pods only after they are proven."""
        return is_gated(self, pool)

    def node_class_of(self, pool: NodePool) -> NodeClass:
        """The node class of a pool: its own fields, else those for all pools."""
        return resolved(self.node_class, pool.node_class, pool.ami_alias)

    def brings_plugin(self, pool: NodePool) -> bool:
        """Whether the pool's AMI has a device plugin of its own: Bottlerocket's NVIDIA variants do, AL2023's do not."""
        return pool.manage and self.node_class_of(pool).family is Family.BOTTLEROCKET

    def to_json(self) -> dict[str, Any]:
        """JSON form with every default written out; :func:`parse_cluster` and ``model_validate`` read it back."""
        return self.model_dump(mode="json", by_alias=True)

    def reservations(self, pool: NodePool) -> tuple[ReservationTerm, ...]:
        """The capacity reservations of a pool: its own, else the node class's; none without the type ``reserved``."""
        if "reserved" not in pool.capacity_types:
            return ()
        return pool.capacity_reservations or self.node_class.capacity_reservations

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON: equal exactly if every field is equal, defaults included."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_cluster(
    value: Mapping[str, Any],
    *,
    where: str = "",
    place: Callable[[str], str] = lambda field: "",  # noqa: ARG005
) -> ClusterSpec:
    """The spec in a mapping, as read from a cluster file.

    :param where: what to name in messages, usually the file name.
    :param place: where in the file a dotted field is, see :meth:`~gpu_fleet.core.spec.yaml.document.Document.place`.
    :raises SpecErrors: with every problem found, each naming the dotted field and the remedy.
    """
    try:
        return ClusterSpec.model_validate(value)
    except ValidationError as error:
        raise SpecErrors(problems_of(error, place), where=where) from error
