"""The teardown's graph: what is removed is what a person has approved."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from airflow.sdk import DAG

from gpu_fleet.phases.teardown import teardown
from tests.unit.core.specs import demo_spec


def graph(**changes: Any) -> DAG:
    with DAG("gpu_teardown.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as dag:
        teardown(demo_spec(**changes))
    return dag


def test_the_plan_after_the_approval_is_compared_with_the_approved_one() -> None:
    dag = graph()
    again = dag.get_task("teardown.plan_again")
    assert again.approved_task_id == "teardown.plan"
    assert "teardown.plan" in again.get_flat_relative_ids(upstream=True)


def test_the_classes_of_pools_that_are_kept_are_not_waited_for() -> None:
    dag = graph(nodePools__1__manage=False, teardown__uninstallKarpenter=False)
    gate = dag.get_task("teardown.node_classes_gone")
    assert gate.args == {"spec": "demo", "kept": ["whole-a100"]}


def test_pools_that_only_the_cluster_knows_are_drained_before_any_is_deleted() -> None:
    dag = graph()
    drain = dag.get_task("teardown.drain_removed_pools")
    assert drain.drained == ["shared-a10g", "whole-a100"]
    assert drain.downstream_task_ids >= {"teardown.delete_node_pools"}


def test_the_wait_for_node_claims_knows_what_was_removed() -> None:
    """An emergency limits it to its own pools, see ``core/gates/teardown.py``."""
    wait = graph().get_task("teardown.node_claims_gone")
    assert wait.args["removed"].operator.task_id == "teardown.delete_node_pools"
    assert wait.upstream_task_ids == {"teardown.delete_node_pools"}
    removed = {"way": "Emergency", "waitsFor": ["shared-a10g"]}
    ti = SimpleNamespace(xcom_pull=lambda **_: removed)
    wait.render_template_fields({"ti": ti})
    assert wait.args["removed"] == removed
