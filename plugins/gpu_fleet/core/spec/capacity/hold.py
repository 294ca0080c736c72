"""What happens to capacity after validation."""

from __future__ import annotations

from pydantic import Field

from gpu_fleet.core.spec.base import SpecModel
from gpu_fleet.core.spec.capacity.pre_pull import PrePull


class Capacity(SpecModel):
    """What happens to capacity after validation."""

    hold: int = Field(
        default=0,
        ge=0,
        le=1440,
        description="Minutes for which the validated nodes are kept, and paid for, although no job uses them.",
    )
    pre_pull: PrePull = Field(
        default=(),
        description="Images, with tag or digest, that the wanted nodes pull while they are being proven. The run's "
        "report says how long each took. Nothing of an image is run; private registries need the node role's access.",
    )
