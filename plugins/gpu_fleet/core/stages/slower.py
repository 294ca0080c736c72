"""Stages that took longer in a run than the pool's own history lets expect.

A stage is slower if the median of the run's new nodes of an instance type is above the median of the last
:data:`SAMPLES` nodes of that type by more than each of

- :data:`DEVIATIONS` × MAD (the median of the distances from the median, × 1.4826, by which it estimates a standard
  deviation of normally distributed values; Rousseeuw and Croux 1993, *Alternatives to the Median Absolute Deviation*),
- :data:`SHARE` of the median: steady stages have an MAD of 0,
- :data:`LEAST_S` seconds: time stamps are whole seconds, and nobody looks after less.

Medians, because one hour in which EC2 had no capacity must neither be the yardstick nor hide the next one. Fewer than
:data:`LEAST_SAMPLES` nodes are no history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gpu_fleet.core.stages.moments import COMING, NodeTimes, Stage

SAMPLES, LEAST_SAMPLES = 50, 8
DEVIATIONS, NORMAL = 5.0, 1.4826
SHARE, LEAST_S = 0.25, 10.0


@dataclass(frozen=True)
class Slower:
    """One stage that took longer than usual.

    :ivar took: median of the run's new nodes, in seconds.
    :ivar usual: median of the history.
    :ivar limit: what would not have been named.
    :ivar samples: nodes of the history.
    :ivar nodes: those of the run that took longer than the limit.
    """

    stage: Stage
    instance_type: str
    took: float
    usual: float
    limit: float
    samples: int
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.instance_type}: {self.stage.words} took {self.took:.0f} s, "
            f"{self.took - self.usual:.0f} s more than usual (median {self.usual:.0f} s of the last {self.samples} "
            f"nodes, named above {self.limit:.0f} s)"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": str(self.stage),
            "type": self.instance_type,
            "took": self.took,
            "usual": self.usual,
            "limit": self.limit,
            "samples": self.samples,
            "nodes": list(self.nodes),
            "message": str(self),
        }


def slower(past: Sequence[NodeTimes], new: Sequence[NodeTimes]) -> list[Slower]:
    """The stages that got slower, by instance type and in the order of the stages.

    :param past: the pool's history without the run's own nodes, oldest first.
    :param new: the nodes that came with the run.
    """
    found = []
    for kind in sorted({node.instance_type for node in new}):
        mine = [node for node in new if node.instance_type == kind]
        for stage in COMING:
            before = _seconds((node for node in past if node.instance_type == kind), stage)[-SAMPLES:]
            now = _seconds(mine, stage)
            if not now or len(before) < LEAST_SAMPLES:
                continue
            usual, took, limit = median(before), median(now), limit_of(before)
            if took > limit:
                late = tuple(node.node for node in mine if (node.seconds(stage) or 0.0) > limit)
                found.append(Slower(stage, kind, took, usual, limit, len(before), late))
    return found


def limit_of(values: Sequence[float]) -> float:
    """The most seconds that are not named as slower than these."""
    middle = median(values)
    deviation = NORMAL * median(abs(value - middle) for value in values)
    return middle + max(DEVIATIONS * deviation, SHARE * middle, LEAST_S)


def _seconds(nodes: Iterable[NodeTimes], stage: Stage) -> list[float]:
    return [value for node in nodes if (value := node.seconds(stage)) is not None]
