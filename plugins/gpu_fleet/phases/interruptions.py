"""An interruption: what cannot wait in one task, then where the pods went, what the pools lost, and what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_fleet.operators.base import DRAIN_TASK_ID
from gpu_fleet.operators.interruptions.drain import DrainInterruptedOperator
from gpu_fleet.operators.interruptions.placed import AwaitPlacementOperator
from gpu_fleet.operators.interruptions.planned import StartDrainOperator, When
from gpu_fleet.operators.interruptions.publish import PublishLostOperator
from gpu_fleet.operators.interruptions.restore import RestorePoolsOperator
from gpu_fleet.operators.interruptions.verdict import NothingLostOperator
from gpu_fleet.phases.common import Phase
from gpu_fleet.triggers.interruptions import interruptions_asset

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def drain_interrupted(spec: ClusterSpec) -> Phase:
    """The drain, which waits for no other task."""
    asset = interruptions_asset(spec)
    return Phase.of(
        DrainInterruptedOperator(task_id=DRAIN_TASK_ID, cluster=spec.name, inlets=[asset] if asset is not None else [])
    )


def after_interruption(spec: ClusterSpec) -> Phase:
    """Side by side: a restoration of the pools that lost nodes is started, the evicted pods find a place, and drains
    are started that need not be made at once.

    The same tasks whatever the cluster file says, because several runs may be under way when it is edited.
    """
    publish = PublishLostOperator(task_id="publish_lost", cluster=spec.name, pools=spec.pool_names)
    restore = RestorePoolsOperator(task_id="restore_pools", trigger_dag_id=f"gpu_restore.{spec.name}")
    placed = AwaitPlacementOperator(task_id="pods_placed")
    lost = NothingLostOperator(task_id="nothing_lost")
    publish >> restore
    starts = [
        StartDrainOperator(task_id=task_id, trigger_dag_id=f"gpu_drain.{spec.name}", when=when)
        for task_id, when in (("drain_planned", When.NOW), ("drain_in_window", When.WINDOW))
    ]
    tasks: list[Any] = [publish, restore, placed, lost, *starts]
    return Phase(heads=[publish, placed, lost, *starts], tails=[restore, placed, lost, *starts], tasks=tasks)
