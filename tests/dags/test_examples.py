"""The examples for users: they load, and rest on the fleet as it is shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from gpu_fleet.core.pools.assets import Topic, uri
from gpu_fleet.hooks.files.clusters import load_cluster
from tests.dags.conftest import ROOT, Parse

FOLDER = ROOT / "examples" / "dags"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def examples(parse: Parse) -> dict[str, Any]:
    return parse(files=FILES)


def test_the_examples_load(examples: dict[str, Any]) -> None:
    assert examples["errors"] == {}
    names = ["checkpointed_training", "train_on_request", "train_when_ready"]
    assert sorted(examples["dags"]) == [path.stem for path in FILES] == names
    assert all(len(dag["doc"]) > 300 for dag in examples["dags"].values())


@pytest.mark.parametrize("dag_id", ["train_when_ready", "checkpointed_training"])
def test_training_is_scheduled_on_the_change_to_ready_alone(examples: dict[str, Any], dag_id: str) -> None:
    schedule = json.dumps(examples["dags"][dag_id]["serialized"]["dag"]["timetable"])
    assert uri("demo", "shared-a10g", Topic.READY) in schedule
    assert str(Topic.VALIDATED) not in schedule


def test_what_follows_what(examples: dict[str, Any]) -> None:
    assert examples["dags"]["train_when_ready"]["tasks"]["train"]["upstream"] == ["check_still_valid"]
    assert examples["dags"]["checkpointed_training"]["tasks"]["await_job"]["upstream"] == ["start_job"]
    # A second run would follow the Job of the first; there is no use in that.
    assert examples["dags"]["checkpointed_training"]["max_active_runs"] == 1


def test_a_job_is_watched_without_a_worker(examples: dict[str, Any]) -> None:
    dag = examples["dags"]["checkpointed_training"]
    serialized = {task["__var"]["task_id"]: task["__var"] for task in dag["serialized"]["dag"]["tasks"]}
    assert serialized["await_job"]["reschedule"] is True


def test_capacity_is_asked_for_before_training(examples: dict[str, Any], fleet: dict[str, Any]) -> None:
    dag = examples["dags"]["train_on_request"]
    assert dag["tasks"]["train"]["upstream"] == ["ask_for_capacity"]
    serialized = {task["__var"]["task_id"]: task["__var"] for task in dag["serialized"]["dag"]["tasks"]}
    ask = serialized["ask_for_capacity"]
    assert ask["conf"] == {"pools": ["whole-a100"]}
    # Checked by the lifecycle itself when it starts: an unknown key or pool fails the run.
    params = fleet["dags"][ask["trigger_dag_id"]]["params"]
    assert set(ask["conf"]) <= set(params)
    assert set(ask["conf"]["pools"]) <= set(params["pools"]["items"]["enum"])
    assert dag["tasks"]["ask_for_capacity"]["retries"] == 0


@pytest.mark.parametrize("dag_id", ["train_when_ready", "train_on_request"])
def test_the_pods_go_to_nodes_of_the_shipped_cluster(examples: dict[str, Any], dag_id: str) -> None:
    spec = load_cluster("demo")
    tasks = {task["__var"]["task_id"]: task["__var"] for task in examples["dags"][dag_id]["serialized"]["dag"]["tasks"]}
    train = tasks["train"]
    assert train["cluster_name"] == spec.cluster.name
    assert train["node_selector"]["gpu-fleet.io/pool"] in spec.pool_names


#: Name -> the extra of the event that starts the run (``None``: no event), and whether the training is skipped.
PROOFS: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "valid": ({"validUntil": "2999-01-01T00:00:00+00:00", "gpus": {"allocatable": 8}, "report": "/r"}, False),
    "expired": ({"validUntil": "2020-01-01T00:00:00+00:00"}, True),
    "made by hand": ({}, False),
    "no event": (None, True),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What the example's check makes of each proof, asked in one fresh interpreter."""
    code = f"""
import json, runpy, types
from airflow.sdk.exceptions import AirflowSkipException
found = runpy.run_path({str(FOLDER / "train_when_ready.py")!r})
answers = {{}}
for name, extra in { ({name: extra for name, (extra, _) in PROOFS.items()})!r}.items():
    events = [] if extra is None else [types.SimpleNamespace(timestamp=1, extra=extra)]
    try:
        answers[name] = f"went on {{found['check_still_valid'].function({{found['READY']: events}})}}"
    except AirflowSkipException as error:
        answers[name] = f"skipped {{error}}"
print("@@@" + json.dumps(answers))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "@@@" in done.stdout, done.stderr[-2000:]
    value: dict[str, str] = json.loads(done.stdout.split("@@@", 1)[1])
    return value


@pytest.mark.parametrize("proof", PROOFS)
def test_a_proof_that_has_expired_starts_no_training(answers: dict[str, str], proof: str) -> None:
    assert answers[proof].startswith("skipped" if PROOFS[proof][1] else "went on"), answers[proof]
