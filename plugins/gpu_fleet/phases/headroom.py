"""Headroom: when its windows open, and the one task that opens them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_fleet.operators.capacity.headroom import OpenHeadroomOperator
from gpu_fleet.phases.common import Phase

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def has_headroom(spec: ClusterSpec) -> bool:
    """Whether a pool of the cluster has windows."""
    return any(pool.capacity.headroom for pool in spec.node_pools)


def openings(spec: ClusterSpec) -> Any:
    """The DAG's schedule: all windows of all pools, whose time zone is the same; ``None`` without any."""
    from airflow.sdk import MultipleCronTriggerTimetable

    windows = [window for pool in spec.node_pools for window in pool.capacity.headroom]
    if not windows:
        return None
    return MultipleCronTriggerTimetable(*sorted({window.schedule for window in windows}), timezone=windows[0].time_zone)


def open_headroom() -> Phase:
    return Phase.of(OpenHeadroomOperator(task_id="open_headroom"))
