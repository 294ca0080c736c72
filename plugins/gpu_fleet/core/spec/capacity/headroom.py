"""Headroom: nodes that a pool keeps free at certain hours."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from gpu_fleet.core.spec.base import SpecModel
from gpu_fleet.core.spec.types.cron import check_schedule
from gpu_fleet.core.spec.types.durations import Duration

#: Seconds of the shortest and the longest window. A GPU node needs minutes to come.
SHORTEST_S, LONGEST_S = 15 * 60, 7 * 24 * 3600


class HeadroomWindow(SpecModel):
    """A window in which nodes of the pool are kept free, again and again."""

    schedule: str = Field(description="Cron expression at which the window opens, in `timeZone`: '0 8 * * 1-5'.")
    duration: Duration = Field(
        description="How long it stays open, 15m to 168h: 10h. When it closes, its placeholders end by themselves, and "
        "Karpenter removes nodes that are idle for disruption.consolidateAfter."
    )
    time_zone: str = Field(
        default="UTC",
        max_length=64,
        description="IANA time zone of `schedule`, for example Europe/Berlin; the same for all windows of a cluster "
        "file, because Airflow reads them as one schedule.",
    )
    nodes: int = Field(
        ge=1,
        le=200,
        description="Nodes of the pool that are kept free for users, idle ones included; at most limits.nodes. They "
        "are paid for whether or not a job comes.",
    )

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        return check_schedule(value)

    @field_validator("duration")
    @classmethod
    def _bounded(cls, value: Duration) -> Duration:
        if not SHORTEST_S <= value.seconds <= LONGEST_S:
            raise ValueError(f"{value!r} is not between 15m and 168h; write for example 10h")
        return value

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:  # unknown, no relative path, a folder
            raise ValueError(f"{value!r} is not an IANA time zone; write for example Europe/Berlin, or UTC") from error
        return value
