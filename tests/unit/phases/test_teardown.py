"""The teardown's graph: what is removed is what a person has approved."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG

from gpu_fleet.phases.teardown import teardown
from tests.unit.core.specs import demo_spec


def test_the_plan_after_the_approval_is_compared_with_the_approved_one() -> None:
    with DAG("gpu_teardown.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as dag:
        teardown(demo_spec())
    again = dag.get_task("teardown.plan_again")
    assert again.approved_task_id == "teardown.plan"
    assert "teardown.plan" in again.get_flat_relative_ids(upstream=True)
