"""Capacity: placeholder pods make Karpenter launch nodes; the gate is allocatable == physical x replicas on each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup, TriggerRule

from gpu_fleet.operators.capacity.burst import RequestSharedCapacityOperator
from gpu_fleet.operators.capacity.pre_pull import PrePullImagesOperator
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.reservations.booking import BookBlockEndOperator
from gpu_fleet.phases.common import Phase

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def capacity(spec: ClusterSpec) -> dict[str, Phase]:
    """One chain per pool, side by side: pool name to its phase."""
    phases: dict[str, Phase] = {}
    with TaskGroup("capacity", tooltip="GPU nodes with exactly the GPUs that were promised"):
        for pool in spec.node_pools:
            with TaskGroup(f"pool_{pool.name}"):
                # For a shared pool the task can first prove, on request, that a burst buys no node too many.
                asking = RequestSharedCapacityOperator if pool.shared else RequestCapacityOperator
                request = asking(task_id="request_capacity", node_pool=pool.name)
                wait = AwaitCapacityOperator(task_id="await_capacity", node_pool=pool.name)
                request >> wait
                beside: list[Any] = []
                if pool.capacity.pre_pull:
                    # Beside the proof and validation: only the pool's verdict waits for the images.
                    beside = [PrePullImagesOperator(task_id="pre_pull", node_pool=pool.name)]
                    wait >> beside
                tasks: list[Any] = [request, wait, *beside]
                if pool.capacity_block is not None:
                    # The end is booked before anything is launched; one that is booked already skips the task.
                    request.trigger_rule = TriggerRule.NONE_FAILED
                    booked = BookBlockEndOperator(
                        task_id="book_block_end", node_pool=pool.name, trigger_dag_id=f"gpu_drain.{spec.name}"
                    )
                    booked >> request
                    tasks = [booked, *tasks]
            phases[pool.name] = Phase(heads=[tasks[0]], tails=[wait], tasks=tasks, beside=beside)
    return phases
