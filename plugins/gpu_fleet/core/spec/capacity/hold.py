"""What happens to capacity after validation."""

from __future__ import annotations

from pydantic import Field

from gpu_fleet.core.spec.base import SpecModel


class Capacity(SpecModel):
    """What happens to capacity after validation."""

    hold: int = Field(
        default=0,
        ge=0,
        le=1440,
        description="Minutes for which the validated nodes are kept, and paid for, although no job uses them.",
    )
