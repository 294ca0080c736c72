"""Joins that must not fire early."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from gpu_fleet.phases.common import chain_ends


def ids(tasks: list[EmptyOperator]) -> list[str]:
    return [task.task_id for task in tasks]


def test_chain_is_settled_by_its_last_task() -> None:
    with DAG("chain", schedule=None):
        first, second, third = (EmptyOperator(task_id=name) for name in ("first", "second", "third"))
        first >> second >> third
    assert ids(chain_ends([first, second, third])) == ["third"]


def test_each_chain_into_a_join_is_waited_for() -> None:
    """``join`` is upstream_failed as soon as ``left`` fails, while ``right`` may still run."""
    with DAG("join", schedule=None):
        left, right, join, after = (EmptyOperator(task_id=name) for name in ("left", "right", "join", "after"))
        [left, right] >> join >> after
    assert ids(chain_ends([left, right, join, after])) == ["after", "left", "right"]


def test_tasks_outside_do_not_count() -> None:
    with DAG("outside", schedule=None):
        inside, outside = EmptyOperator(task_id="inside"), EmptyOperator(task_id="outside")
        inside >> outside
    assert ids(chain_ends([inside])) == ["inside"]
