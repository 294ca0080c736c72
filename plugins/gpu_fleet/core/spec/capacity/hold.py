"""How the capacity of a pool is obtained, and what happens to it after validation."""

from __future__ import annotations

from pydantic import Field

from gpu_fleet.core.spec.base import SpecModel
from gpu_fleet.core.spec.capacity.headroom import HeadroomWindow
from gpu_fleet.core.spec.capacity.ladder import Rung
from gpu_fleet.core.spec.capacity.pre_pull import PrePull


class Capacity(SpecModel):
    """How the capacity of a pool is obtained, and what happens to it after validation."""

    hold: int = Field(
        default=0,
        ge=0,
        le=1440,
        description="Minutes for which the validated nodes are kept, and paid for, although no job uses them.",
    )
    headroom: tuple[HeadroomWindow, ...] = Field(
        default=(),
        max_length=10,
        description="Windows in which nodes of the pool are kept free, and paid for, for users that come; the DAG "
        "gpu_headroom opens them. While several are open, the one with the most nodes counts. Not with `hold`.",
    )
    ladder: tuple[Rung, ...] = Field(
        default=(),
        max_length=20,
        description="What to try, in this order, each for a time of its own: spot of one type, then of others, then "
        "on-demand, for example. Only the run's requests for nodes are narrowed, never the NodePool: pods of users may "
        "use whatever the pool allows. Default: everything that the pool allows at once.",
    )
    minimum: int | None = Field(
        default=None,
        ge=1,
        le=200,
        description="The least number of nodes with which a run is content, once every rung of the ladder has been "
        "tried (without a ladder: once deadlines.capacity has passed). null: all of wantedNodes, or the run fails.",
    )
    pre_pull: PrePull = Field(
        default=(),
        description="Images, with tag or digest, that the wanted nodes pull while they are being proven. The run's "
        "report says how long each took. Nothing of an image is run; private registries need the node role's access.",
    )
