"""Capacity reservations of a pool: which ones, and the calendar of Capacity Blocks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from gpu_fleet.core.spec.base import Pattern, SpecModel
from gpu_fleet.core.spec.problems import shortened
from gpu_fleet.core.spec.types.durations import Seconds
from gpu_fleet.core.spec.types.selecting import SelectingTags

#: Most terms of ``capacityReservationSelectorTerms`` (aws/karpenter-provider-aws v1.14.1 pkg/apis/v1/ec2nodeclass.go).
MOST_TERMS = 30


def _id(value: str) -> str:
    if value.startswith("arn:"):
        return f"{shortened(value)} is an ARN; write the id at its end, for example cr-0123456789abcdef0"
    if value.startswith("cb-"):
        return (
            f"{shortened(value)} is the id of a Capacity Block; write the id of its capacity reservation, cr-…, which "
            "aws ec2 describe-capacity-reservations shows"
        )
    return f"{shortened(value)} is not the id of a capacity reservation; write for example cr-0123456789abcdef0"


def _owner(value: str) -> str:
    return f"{shortened(value)} is not the id of an AWS account; write its 12 digits, in quotes"


ReservationId = Annotated[str, Pattern(r"cr-[0-9a-z]+", _id)]
AccountId = Annotated[str, Pattern(r"[0-9]{12}", _owner)]


class ReservationTerm(SpecModel):
    """Chooses capacity reservations: one by its id, or all with these tags. Of several terms, each adds its own."""

    id: ReservationId | None = Field(
        default=None, description="Id of the capacity reservation, cr-…; a Capacity Block has one, too."
    )
    tags: SelectingTags = Field(default_factory=dict)
    owner: AccountId | None = Field(
        default=None,
        description="With tags: only reservations of this account, for example of one that shares them with yours.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> ReservationTerm:
        if self.id is not None and (self.tags or self.owner):
            raise ValueError("id stands alone; remove tags and owner, or write them as another entry")
        if self.id is None and not self.tags:
            raise ValueError("chooses no reservation; give id or tags")
        return self


class CapacityBlock(SpecModel):
    """When the nodes of a Capacity Block are given up, before EC2 takes them."""

    margin: Seconds = Field(
        default=Seconds.parse("75m"),
        description="The pool stops so long before the end of the block: it is no longer published as valid, its nodes "
        "are cordoned, Karpenter buys no more, and the jobs are told.",
    )
    notice: Seconds = Field(
        default=Seconds.parse("15m"),
        description="How long the jobs go on after that, to save their work, before their pods are evicted.",
    )
    empty_before: Seconds = Field(
        default=Seconds.parse("45m"),
        description="The nodes are empty so long before the end of the block: what a PodDisruptionBudget holds until "
        "then is deleted in time for its grace period. EC2 begins to terminate 30 minutes before the end (60 for "
        "UltraServers), and Karpenter drains 10 minutes earlier.",
    )
    wait: Seconds = Field(
        default=Seconds.parse("24h"),
        description="How long a lifecycle run waits for the block to begin. It takes no worker and holds no lock.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> CapacityBlock:
        if self.margin <= self.notice + self.empty_before:
            raise ValueError(
                f"margin {self.margin.text} leaves no time for the drain between notice {self.notice.text} and "
                f"emptyBefore {self.empty_before.text}; write for example "
                f"margin: {(self.notice + self.empty_before) // 60 + 15}m"
            )
        return self
