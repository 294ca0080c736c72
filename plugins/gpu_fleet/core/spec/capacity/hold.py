"""What happens to capacity after validation."""

from __future__ import annotations

from pydantic import Field

from gpu_fleet.core.spec.base import SpecModel
from gpu_fleet.core.spec.capacity.headroom import HeadroomWindow


class Capacity(SpecModel):
    """What happens to capacity after validation."""

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
