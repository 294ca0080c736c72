"""The graphs of the DAG files where the spec asks for less, or for more, than the demo's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.spec import ClusterSpec
from tests.dags.conftest import ROOT
from tests.unit.core.specs import demo_spec

FAMILIES = (
    "gpu_drain",
    "gpu_headroom",
    "gpu_lifecycle",
    "gpu_restore",
    "gpu_revalidate",
    "gpu_spot_drain",
    "gpu_teardown",
)

IDLE, OTHER = "shared-a10g", "whole-a100"


def graph_of(family: str) -> Callable[[ClusterSpec], None]:
    """The function ``graph`` of a DAG file."""
    location = importlib.util.spec_from_file_location(f"dags_{family}", ROOT / "dags" / f"{family}.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    graph: Callable[[ClusterSpec], None] = module.graph
    return graph


def upstreams(**changes: Any) -> dict[str, set[str]]:
    """Task id of the lifecycle to its direct upstreams."""
    lifecycle_graph = graph_of("gpu_lifecycle")
    with DAG("gpu_lifecycle.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as dag:
        lifecycle_graph(demo_spec(**changes))
    return {task.task_id: set(task.upstream_task_ids) for task in dag.tasks}


def test_pool_that_wants_no_nodes_neither_proves_nor_waits_for_a_proof() -> None:
    """The plugin's DaemonSet wants no pod there: a proof would wait for its whole deadline, and fail."""
    found = upstreams(nodePools__0__wantedNodes=0)
    assert found["prove.prove_device_plugin"] == {f"capacity.pool_{OTHER}.await_capacity"}
    assert found[f"validation.pool_{IDLE}.protect_nodes"] == {f"capacity.pool_{IDLE}.await_capacity"}
    assert "prove.prove_device_plugin" in found[f"validation.pool_{OTHER}.protect_nodes"]


def test_without_any_wanted_node_nothing_is_proven_and_the_rest_still_runs() -> None:
    found = upstreams(nodePools__0__wantedNodes=0, nodePools__1__wantedNodes=0)
    assert not any(task_id.startswith("prove.") for task_id in found)
    assert found[f"validation.pool_{OTHER}.protect_nodes"] == {f"capacity.pool_{OTHER}.await_capacity"}


def test_plugin_of_others_is_not_proven_here() -> None:
    assert not any(task_id.startswith("prove.") for task_id in upstreams(devicePlugin__manage=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_grows_linearly_with_its_pools(family: str) -> None:
    """Each pool related to each other would be 10,000 relations where 100 pools are allowed."""
    graph = graph_of(family)

    def relations(pools: int) -> tuple[int, int]:
        (first, *_) = demo_spec().to_json()["nodePools"]
        spec = demo_spec(nodePools=[{**first, "name": f"pool-{number}"} for number in range(pools)])
        with DAG("any.demo", schedule=None) as dag:
            graph(spec)
        return len(dag.tasks), sum(len(task.downstream_task_ids) for task in dag.tasks)

    (tasks, edges), (more_tasks, more_edges), (most_tasks, most_edges) = map(relations, (10, 20, 30))
    assert most_tasks - more_tasks == more_tasks - tasks
    assert most_edges - more_edges == more_edges - edges


# --- gated pools ---
GATED = {"nodePools__0__admission": "gated"}


def tasks_of(family: str, **changes: Any) -> dict[str, Any]:
    with DAG(f"{family}.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as dag:
        graph_of(family)(demo_spec(**changes))
    return {task.task_id: task for task in dag.tasks}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_gated_pool_no_graph_has_anything_of_admission(family: str) -> None:
    assert not [task_id for task_id in tasks_of(family) if "admit" in task_id]


@pytest.mark.parametrize("family", ["gpu_lifecycle", "gpu_restore", "gpu_revalidate"])
def test_a_gated_pool_is_opened_after_its_last_probe_and_before_clean_up_and_publication(family: str) -> None:
    tasks = tasks_of(family, **GATED)
    place = f"validation.pool_{IDLE}"
    (admit,) = [task_id for task_id in tasks if "admit" in task_id]
    assert admit == f"{place}.admit_nodes"
    probes = {task_id for task_id, task in tasks.items() if task_id.startswith(place) and hasattr(task, "probe")}
    assert set(tasks[admit].upstream_task_ids) == probes
    assert {f"{place}.clean_up", f"{place}.publish"} <= set(tasks[admit].downstream_task_ids)
    assert tasks[admit].trigger_rule == "all_done"


def test_pods_are_evicted_only_to_replacements_that_take_them() -> None:
    tasks = tasks_of("gpu_drain", **GATED)
    admit = f"replacement.pool_{IDLE}.admit_nodes"
    assert admit in tasks["drain"].upstream_task_ids


def test_nodes_that_came_later_are_proven_opened_and_remedied_in_their_own_dag() -> None:
    tasks = tasks_of("gpu_admit", **GATED)
    chain = ["protect_nodes", "sharing", "admit_nodes", "remediate", "clean_up"]
    found = [f"admission.pool_{IDLE}.{name}" for name in chain]
    assert [task_id for task_id in tasks if task_id.startswith("admission.")] == found
    for before, after in pairwise(found):
        assert before in tasks[after].upstream_task_ids
    assert tasks["preflight.acquire_turn"].if_taken == "skip"
    assert tasks[found[0]].only_unproven
    # The time box does not wait for other runs.
    assert tasks[found[2]].without_lock


def test_admission_grows_linearly_with_the_gated_pools() -> None:
    (first, *_) = demo_spec().to_json()["nodePools"]

    def size(pools: int) -> tuple[int, int]:
        named = [{**first, "name": f"pool-{number}"} for number in range(pools)]
        tasks = tasks_of("gpu_admit", nodePools=named, validation__admission="gated")
        return len(tasks), sum(len(task.downstream_task_ids) for task in tasks.values())

    (few, edges), (more, more_edges), (most, most_edges) = map(size, (10, 20, 30))
    assert most - more == more - few
    assert most_edges - more_edges == more_edges - edges
