"""The tasks of a Capacity Block's calendar: only where a pool has one, and in the order that keeps its promises."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, TriggerRule

from gpu_fleet.phases.capacity import capacity
from gpu_fleet.phases.drain import block_due, drained
from gpu_fleet.phases.family import dagrun_timeout
from gpu_fleet.phases.preflight import preflight
from tests.unit.core.specs import demo_spec

BLOCK = {
    "nodePools__1__capacityTypes": ["reserved"],
    "nodePools__1__capacityReservations": [{"id": "cr-1"}],
    "nodePools__1__capacityBlock": {},
}


def built(**changes: Any) -> DAG:
    spec = demo_spec(**changes)
    with DAG("gpu_x.demo", schedule=None) as dag:
        preflight(spec)
        capacity(spec)
        block_due(spec)
        drained(spec)
    return dag


def test_other_clusters_have_none_of_them() -> None:
    names = set(built().task_ids)
    assert not {each for each in names if "block" in each or each in ("stop_admitting", "book_next")}
    assert built().get_task("preflight.acquire_turn").trigger_rule == TriggerRule.ALL_SUCCESS


def test_the_wait_comes_before_the_lock_and_may_be_skipped() -> None:
    lock = built(**BLOCK).get_task("preflight.acquire_turn")
    assert "preflight.await_capacity_blocks" in lock.upstream_task_ids
    assert lock.trigger_rule == TriggerRule.NONE_FAILED


def test_the_end_is_booked_before_anything_is_requested() -> None:
    dag = built(**BLOCK)
    request = dag.get_task("capacity.pool_whole-a100.request_capacity")
    assert request.upstream_task_ids == {"capacity.pool_whole-a100.book_block_end"}
    # An end that is booked already skips the task that books it.
    assert request.trigger_rule == TriggerRule.NONE_FAILED
    assert "capacity.pool_shared-a10g.book_block_end" not in dag.task_ids


def test_the_jobs_are_told_between_the_cordon_and_the_drain() -> None:
    dag = built(**BLOCK)
    stop = dag.get_task("stop_admitting")
    assert stop.upstream_task_ids == {"cordon"}
    assert "stop_admitting" in dag.get_task("drain").upstream_task_ids
    assert dag.get_task("book_next").trigger_rule == TriggerRule.ALL_DONE


def test_a_run_has_the_time_to_wait() -> None:
    longer = dagrun_timeout(demo_spec(**BLOCK)) - dagrun_timeout(demo_spec())
    assert longer == timedelta(hours=24, minutes=15)
