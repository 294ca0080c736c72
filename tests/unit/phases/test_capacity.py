"""The capacity phase: images are pulled beside the proof, and only a pool's verdict waits for them."""

from __future__ import annotations

from airflow.sdk import DAG

from gpu_fleet.phases.capacity import capacity
from gpu_fleet.phases.validation import validation
from tests.unit.core.specs import demo_spec

PULL = "capacity.pool_shared-a10g.pre_pull"


def test_without_images_there_is_no_task_for_them() -> None:
    with DAG("gpu_lifecycle.demo", schedule=None) as dag:
        capacity(demo_spec())
    assert not any("pre_pull" in task_id for task_id in dag.task_ids)


def test_images_are_pulled_beside_the_proof() -> None:
    spec = demo_spec(nodePools__0__capacity__prePull=["busybox:1.36"])
    with DAG("gpu_lifecycle.demo", schedule=None) as dag:
        asked, validated = capacity(spec), validation(spec)
        for name in spec.pool_names:
            asked[name] >> validated[name]
    pull = dag.task_dict[PULL]
    assert pull.upstream_task_ids == {"capacity.pool_shared-a10g.await_capacity"}
    assert pull.downstream_task_ids == {
        "validation.pool_shared-a10g.clean_up", "validation.pool_shared-a10g.publish",
    }  # fmt: skip
    assert PULL in {task.task_id for task in asked["shared-a10g"].tasks}
    assert not dag.task_dict["validation.pool_shared-a10g.protect_nodes"].upstream_task_ids & {PULL}
