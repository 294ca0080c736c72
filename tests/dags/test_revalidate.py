"""The revalidation's graph: what it compares and proves, what it never does, and how a run ends whatever happened."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dags.conftest import ROOT, Parse
from tests.dags.test_integrity import POOLS, PROBE, ancestors, write_cluster

DAG_ID = "gpu_revalidate.demo"


@pytest.fixture(scope="module")
def dag(fleet: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = fleet["dags"][DAG_ID]
    return found


@pytest.fixture(scope="module")
def tasks(dag: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dag["tasks"]
    return found


def of_pool(pool: str, task: str) -> str:
    return f"validation.pool_{pool}.{task}"


# --- when it runs ---
def test_without_a_schedule_it_is_started_by_hand(dag: dict[str, Any]) -> None:
    assert (dag["schedule"], dag["catchup"], dag["deadlines"]) == (None, False, [])
    assert {"gpu-fleet", "cluster:demo", "revalidation"} <= set(dag["tags"])


SCHEDULE = ("schedule: null", 'schedule: "0 6 * * 1"')
OVERDUE = ("teardown:\n", "validation: {overdueAfter: 2h}\n\nteardown:\n")


#: Name of a cluster -> what its file says otherwise than the demo's.
CLUSTERS = {
    "scheduled": (SCHEDULE,),
    "absent": (SCHEDULE, OVERDUE, ("state: present", "state: absent")),
    "watched": (SCHEDULE, OVERDUE),
}


@pytest.fixture(scope="module")
def others(parse: Parse, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The revalidations of these clusters, by the cluster's name."""
    folder = tmp_path_factory.mktemp("clusters")
    for name, replaced in CLUSTERS.items():
        write_cluster(folder, name)
        path = folder / f"{name}.yaml"
        text = path.read_text()
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
    found = parse(folder, [ROOT / "dags" / "gpu_revalidate.py"])
    assert found["errors"] == {}
    return {name: found["dags"][f"gpu_revalidate.{name}"] for name in CLUSTERS}


def test_it_runs_on_the_specs_schedule_without_making_up_for_missed_times(others: dict[str, Any]) -> None:
    found = others["scheduled"]
    assert (found["schedule"], found["catchup"], found["max_active_runs"]) == ("0 6 * * 1", False, 1)


def test_a_cluster_that_is_to_be_absent_has_no_schedule_and_no_deadline(others: dict[str, Any]) -> None:
    assert (others["absent"]["schedule"], others["absent"]["deadlines"]) == (None, [])


def test_a_late_revalidation_raises_an_alarm_where_the_spec_asks_for_one(others: dict[str, Any]) -> None:
    assert others["scheduled"]["deadlines"] == []
    assert others["watched"]["deadlines"] == [7200.0]


def test_its_params_are_a_described_form(dag: dict[str, Any]) -> None:
    params = dag["params"]
    assert set(params) == {"pools", "node"}
    assert params["pools"]["items"]["enum"] == list(POOLS)
    assert params["node"]["type"] == ["null", "string"]
    assert all(param["description"] and param["title"] for param in params.values())


# --- what it does ---
def test_it_neither_buys_nor_installs_nor_corrects(tasks: dict[str, Any]) -> None:
    operators = {task["operator"] for task in tasks.values()}
    assert operators == {
        "FreezeSpecOperator",
        "GateSensor",
        "SelectNodeOperator",
        "AcquireLockOperator",
        "CheckDriftOperator",
        "ProtectNodesOperator",
        "ReleasePlaceholdersOperator",
        "RunProbesOperator",
        "CleanUpValidationOperator",
        "RemediateNodesOperator",
        "PublishPoolOperator",
        "ReleaseLockOperator",
        "EmptyOperator",
        "RunVerdictOperator",
    }
    assert [task["gate"] for task in tasks.values() if task["gate"]] == ["cluster_active"]


def test_nothing_happens_before_the_turn_and_a_taken_one_is_not_waited_for(tasks: dict[str, Any]) -> None:
    turn = "preflight.acquire_turn"
    assert tasks[turn]["if_taken"] == "skip"
    assert set(tasks[turn]["upstream"]) == {"preflight.cluster_active", "preflight.select_node"}
    for task_id, task in tasks.items():
        if task_id == "check_drift" or task["changes_cluster"]:
            assert turn in ancestors(tasks, task_id), task_id
    # What would run all the same, its turn or not, must look whether it has it.
    for task_id, task in tasks.items():
        if task["trigger_rule"] != "all_success" and task["node_pool"]:
            assert task["only_in_turn"], task_id


def test_drift_does_not_hold_up_validation_nor_the_reverse(tasks: dict[str, Any]) -> None:
    assert tasks["check_drift"]["upstream"] == ["preflight.acquire_turn"]
    for pool in POOLS:
        before = ancestors(tasks, of_pool(pool, "publish"))
        assert "check_drift" not in before
        others = {task_id for task_id in before if f"pool_{next(p for p in POOLS if p != pool)}" in task_id}
        assert others == set(), "a pool's verdict rests on another pool"


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_is_validated_whatever_nodes_it_has_and_remedied_before_it_is_published(
    tasks: dict[str, Any], pool: str
) -> None:
    protect, remediate = tasks[of_pool(pool, "protect_nodes")], tasks[of_pool(pool, "remediate")]
    assert protect["upstream"] == ["preflight.acquire_turn"]
    assert protect["all_wanted"] is False
    probes = {task_id for task_id, task in tasks.items() if task["operator"] == "RunProbesOperator" and pool in task_id}
    assert of_pool(pool, PROBE[pool]) in probes
    assert set(remediate["upstream"]) == probes
    assert remediate["trigger_rule"] == "all_done"
    assert remediate["skips_unselected_pools"]
    assert set(tasks[of_pool(pool, "publish")]["upstream"]) == {*probes, of_pool(pool, "remediate")}
    assert tasks[of_pool(pool, "publish")]["trigger_rule"] == "all_done"


# --- how it ends ---
def test_the_verdict_says_who_had_the_turn(tasks: dict[str, Any]) -> None:
    assert tasks["run_verdict"]["turn"] == "preflight.acquire_turn"


def test_the_turn_is_not_given_back_while_a_chain_still_runs(tasks: dict[str, Any]) -> None:
    direct = set(tasks["release_turn"]["upstream"])
    assert {"check_drift", *(of_pool(pool, name) for pool in POOLS for name in ("clean_up", "publish"))} <= direct
    for task_id in ancestors(tasks, "release_turn"):
        upstream = tasks[task_id]["upstream"]
        if len(upstream) > 1:
            assert set(upstream) <= direct, f"{task_id} joins chains that release_turn does not wait for"
