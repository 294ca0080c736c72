"""What happens when EC2 takes instances away: whose queue tells us, who acts, and how much time is kept in reserve."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gpu_fleet.core.spec.base import Pattern, SpecModel
from gpu_fleet.core.spec.components import QueueName
from gpu_fleet.core.spec.types.cron import check_schedule
from gpu_fleet.core.spec.types.durations import Seconds

#: Seconds between a spot interruption notice and the instance's end (EC2 User Guide, "Spot Instance interruption
#: notices").
SPOT_NOTICE_S = 120


def _node_group(value: str) -> str:
    return f"{value!r} is not the name of a managed node group; use letters, digits, '-' and '_', at most 63"


NodeGroupName = Annotated[str, Pattern(r"[0-9A-Za-z][0-9A-Za-z_-]{0,62}", _node_group)]


class MaintenanceWindow(SpecModel):
    """When nodes with a scheduled change of AWS may be drained."""

    schedule: str = Field(description="Cron (UTC) at which the window begins, for example '0 2 * * 6'.")
    duration: Seconds = Field(default=Seconds.parse("2h"), description="How long a drain may begin after that.")

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        return check_schedule(value)

    @field_validator("duration")
    @classmethod
    def _some_time(cls, value: Seconds) -> Seconds:
        if value <= 0:
            raise ValueError("must be longer than 0s; write for example 2h")
        return value


class Interruptions(SpecModel):
    """How the package handles what EC2 announces about instances; see the guide to spot interruptions."""

    queue: QueueName | None = Field(
        default=None,
        description="Name of the SQS queue of this package (not Karpenter's, which must have one reader alone), as "
        "include/cloudformation/interruptions.yaml creates it. null: no message is read, and nothing starts "
        "gpu_spot_drain.",
    )
    handler: Literal["karpenter", "gpu-fleet"] | None = Field(
        default=None,
        description="Who evicts the pods of an interrupted node that Karpenter owns. karpenter: Karpenter does, and "
        "the package marks the node, forces what is left before the deadline, and reports. gpu-fleet: the package "
        "evicts, and removes the node. Nodes of `nodeGroups` are always the package's. Default: karpenter if "
        "karpenter.interruptionQueue is set, else gpu-fleet.",
    )
    margin: Seconds = Field(
        default=Seconds.parse("10s"),
        description="Time kept in reserve: a pod that a PodDisruptionBudget still holds is deleted so early that its "
        "own grace period ends this long before the instance does.",
    )
    rebalance: Literal["ignore", "signal", "replace"] = Field(
        default="signal",
        description="What a rebalance recommendation (a raised risk of interruption, without a deadline) causes. "
        "ignore: it is only counted. signal: each pod gets what its annotation gpu-fleet.io/on-rebalance asks for "
        "(evict, signal, nothing), a pod without it nothing. replace: a new node is validated first, then the node "
        "is drained within its PodDisruptionBudgets and removed.",
    )
    maintenance: MaintenanceWindow | None = Field(
        default=None,
        description="When nodes with a scheduled change (AWS Health: retirement, reboot, maintenance) are drained, if "
        "the package drains them. null: as soon as the message comes. Karpenter does not wait for it: with "
        "`handler: karpenter` it drains its nodes when it reads the message, and from version 1.12.0 on within a "
        "minute in any case, unless its role may not call ec2:DescribeInstanceStatus.",
    )
    node_groups: tuple[NodeGroupName, ...] = Field(
        default=(),
        max_length=100,
        description="Managed node groups whose GPU nodes are handled as well; the package drains their nodes and "
        "terminates their instances, because Karpenter does not own them.",
    )
    prove_successor: bool = Field(
        default=True,
        description="true: validate the node that replaces an interrupted one, and publish the pool's state. false: "
        "only report whether the evicted pods found a place.",
    )

    @field_validator("queue")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("must not be empty; write the queue's name, or null to read no messages")
        return value

    @field_validator("margin")
    @classmethod
    def _less_than_the_notice(cls, value: Seconds) -> Seconds:
        if value >= SPOT_NOTICE_S:
            raise ValueError(f"must be shorter than the notice of {SPOT_NOTICE_S}s; write for example 10s")
        return value

    @model_validator(mode="after")
    def _each_group_once(self) -> Interruptions:
        twice = sorted({name for name in self.node_groups if self.node_groups.count(name) > 1})
        if twice:
            raise ValueError(f"nodeGroups names {twice[0]!r} twice; remove one")
        return self
