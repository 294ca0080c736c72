"""Rules about headroom: what may be kept free, in which pools, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.spec.problems import Problem

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec


def within_the_limit(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        for number, window in enumerate(pool.capacity.headroom):
            if pool.manage and window.nodes > pool.node_limit:
                yield Problem(
                    f"nodePools[{index}].capacity.headroom[{number}].nodes",
                    f"{window.nodes} nodes are more than pool {pool.name} may have ({pool.node_limit})",
                    f"write at most {pool.node_limit}, or raise limits.nodes"
                    if pool.node_limit
                    else f"set limits: {{nodes: {window.nodes}}} or more",
                )


def of_own_pools(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        if pool.capacity.headroom and not pool.manage:
            yield Problem(
                f"nodePools[{index}].capacity.headroom",
                f"pool {pool.name} belongs to others (manage: false), whose limits the package does not know",
                "remove it, and let the pool's owner keep nodes free",
            )


def hold_or_headroom(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        if pool.capacity.headroom and pool.capacity.hold:
            yield Problem(
                f"nodePools[{index}].capacity.hold",
                f"pool {pool.name} has headroom, too: both would hold GPUs of the same nodes",
                "remove hold, or headroom",
            )


def one_time_zone(spec: ClusterSpec) -> Iterator[Problem]:
    """One DAG opens all windows; Airflow's ``MultipleCronTriggerTimetable`` has one time zone."""
    first = ""
    for index, pool in enumerate(spec.node_pools):
        for number, window in enumerate(pool.capacity.headroom):
            first = first or window.time_zone
            if window.time_zone != first:
                yield Problem(
                    f"nodePools[{index}].capacity.headroom[{number}].timeZone",
                    f"{window.time_zone} differs from {first} of an earlier window",
                    f"write all windows of a cluster file in one time zone, for example {first}",
                )


HEADROOM: tuple[Callable[[ClusterSpec], Iterator[Problem]], ...] = (
    within_the_limit,
    of_own_pools,
    hold_or_headroom,
    one_time_zone,
)
