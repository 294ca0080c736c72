"""Rules about the ladder of ``capacity``, in the signature of :mod:`gpu_fleet.core.spec.rules`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpu_fleet.core.spec.capacity.ladder import Rung
from gpu_fleet.core.spec.problems import Problem

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec


def rungs_are_of_the_pool(spec: ClusterSpec) -> Iterator[Problem]:
    """A rung narrows the pool: what the NodePool does not allow, Karpenter would never buy for it."""
    for field, index, rung in _rungs(spec):
        pool = spec.node_pools[index]
        for key, named, allowed in (
            ("instanceTypes", rung.instance_types, pool.instance_types),
            ("capacityTypes", rung.capacity_types, pool.capacity_types),
        ):
            foreign = [name for name in named if name not in allowed]
            if foreign:
                yield Problem(
                    f"{field}.{key}",
                    f"pool {pool.name} does not allow {', '.join(foreign)}, so this rung would buy nothing there",
                    f"use {', '.join(allowed)}, or add it to the pool's {key}",
                )
        for key, named in (
            ("instanceTypes", rung.instance_types),
            ("capacityTypes", rung.capacity_types),
            ("zones", rung.zones),
        ):
            double = next((name for name in named if named.count(name) > 1), None)
            if double is not None:
                yield Problem(f"{field}.{key}", f"duplicate entry {double!r}", "remove one")
        elsewhere = [zone for zone in rung.zones if not zone.startswith(spec.aws.region)]
        if elsewhere:
            yield Problem(
                f"{field}.zones",
                f"{', '.join(elsewhere)} is not in {spec.aws.region}",
                f"use zones of the region, for example {spec.aws.region}a",
            )


def rungs_differ(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        before: tuple[Sequence[str], ...] = ()
        for position, rung in enumerate(pool.capacity.ladder):
            this = (
                sorted(rung.instance_types or pool.instance_types),
                sorted(rung.capacity_types or pool.capacity_types),
                sorted(rung.zones),
            )
            if this == before:
                yield Problem(
                    f"nodePools[{index}].capacity.ladder[{position}]",
                    "tries the same as the rung before it",
                    "remove it and lengthen the `for` of the rung before it",
                )
            before = this


def time_boxes_fit(spec: ClusterSpec) -> Iterator[Problem]:
    """All rungs together must leave time for the nodes of the last one to join."""
    deadline = spec.deadlines.capacity
    for index, pool in enumerate(spec.node_pools):
        ladder, field = pool.capacity.ladder, f"nodePools[{index}].capacity.ladder"
        endless = [position for position, rung in enumerate(ladder[:-1]) if rung.time_box is None]
        for position in endless:
            yield Problem(
                f"{field}[{position}].for",
                "is missing, so the rungs after it would never be tried",
                "add for: 5m, or another time; only the last rung may do without",
            )
        for position, rung in enumerate(ladder):
            if rung.time_box is not None and rung.time_box <= 0:
                yield Problem(f"{field}[{position}].for", "must be longer than 0s", "write for example 5m")
        total = sum(rung.time_box or 0 for rung in ladder)
        if ladder and not endless and total >= deadline:
            yield Problem(
                field,
                f"its time boxes add up to {_minutes(total)}, and deadlines.capacity is {deadline.text}: the nodes of "
                "the last rung would have no time to join",
                "shorten them, or raise deadlines.capacity",
            )


def minimum_is_within_wanted(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        least = pool.capacity.minimum
        if least is not None and least > pool.wanted_nodes:
            yield Problem(
                f"nodePools[{index}].capacity.minimum",
                f"{least} is more than wantedNodes {pool.wanted_nodes}",
                f"write at most {pool.wanted_nodes}, or raise wantedNodes"
                if pool.wanted_nodes
                else "remove it, or set wantedNodes",
            )


def _rungs(spec: ClusterSpec) -> Iterator[tuple[str, int, Rung]]:
    for index, pool in enumerate(spec.node_pools):
        for position, rung in enumerate(pool.capacity.ladder):
            yield f"nodePools[{index}].capacity.ladder[{position}]", index, rung


def _minutes(seconds: int) -> str:
    return f"{seconds // 60}m" if seconds % 60 == 0 else f"{seconds}s"


LADDER = (rungs_are_of_the_pool, rungs_differ, time_boxes_fit, minimum_is_within_wanted)
