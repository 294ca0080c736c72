"""A run that a person marks failed gives everything back, and is not called a success.

Airflow's own code decides, on a database of its own: which tasks it skips, which it still runs, and the run's state.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.dags.conftest import ROOT, airflow_environment
from tests.dags.test_integrity import POOLS, PROBE

SHARED, WHOLE = POOLS

_PLAY = """
import json, sys
from datetime import datetime, timezone
import airflow.models
from airflow import settings
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.base import Base
from airflow.utils.db import import_all_models, synchronize_log_template
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from airflow.api.common import mark_tasks
from airflow.serialization.serialized_objects import DagSerialization

import_all_models()
Base.metadata.create_all(settings.engine)
session = settings.Session()
synchronize_log_template(session=session)
DagBundlesManager().sync_bundles_to_db(session=session)
session.commit()
bag = DagBag(dag_folder=sys.argv[1], collect_dags=False)
for path in sys.argv[2:]:
    bag.process_file(path)
sync_bag_to_db(bag, "dags-folder", None, session=session)
session.commit()


class Asking:
    def __init__(self, run, states):
        self.dag_id, self.run_id, self.states = run.dag_id, run.run_id, states

    def get_task_states(self, dag_id, run_ids):
        return {self.run_id: self.states}

    def xcom_pull(self, task_ids, key):
        return None


def play(name, dag_id, begun, mark):
    dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(bag.dags[dag_id]))
    now = datetime.now(timezone.utc)
    run = dag.create_dagrun(
        run_id=name.replace(", ", "-").replace(" ", "-"), run_after=now,
        run_type=DagRunType.MANUAL, triggered_by=DagRunTriggeredByType.TEST,
        state=DagRunState.RUNNING, start_date=now, session=session,
    )
    run.dag = dag
    before = {t for task_id in begun for t in dag.get_task(task_id).get_flat_relative_ids(upstream=True)}
    for ti in run.get_task_instances(session=session):
        ti.state = begun.get(ti.task_id, "success" if ti.task_id in before else None)
        ti.refresh_from_task(dag.get_task(ti.task_id))
    session.flush()
    if ":" in mark:
        marked, state = mark.split(":")
        inside = [t for t, task in dag.task_dict.items() if t.startswith("teardown.") and not task.is_teardown]
        for task_id in inside if marked == "*" else [marked]:
            dag.set_task_instance_state(
                task_id=task_id, run_id=run.run_id, state=TaskInstanceState(state), session=session
            )
    else:
        end = getattr(mark_tasks, "set_dag_run_state_to_" + mark)
        end(dag=dag, run_id=run.run_id, commit=True, session=session)
    session.flush()
    ran, said = [], ""
    for _ in range(20):
        schedulable, _ = run.update_state(session=session, execute_callbacks=False)
        run.schedule_tis(schedulable, session=session)
        session.flush()
        tis = run.get_task_instances(session=session)
        for ti in tis:
            session.refresh(ti)
            if ti.state != TaskInstanceState.SCHEDULED:
                continue
            ran.append(ti.task_id)
            ti.state = TaskInstanceState.SUCCESS
            if ti.task_id == "run_verdict":
                try:
                    bag.dags[dag_id].get_task("run_verdict").execute(
                        {
                            "ti": Asking(run, {t.task_id: str(t.state) for t in tis if t.state}),
                            "params": {"until": "torn_down"} if "lifecycle" in dag_id else {},
                        }
                    )
                except Exception as error:
                    ti.state = TaskInstanceState.FAILED
                    said = str(error)
        session.flush()
        if run.state in (DagRunState.SUCCESS, DagRunState.FAILED):
            break
    return {"ran": ran, "state": str(run.state), "said": said}


scenarios = json.loads(sys.stdin.read())
print("@@@" + json.dumps({name: play(name, *rest) for name, rest in scenarios.items()}))
"""


def of(pool: str, task: str) -> str:
    return f"validation.pool_{pool}.{task}"


#: What happened until a person marked the run: the DAG, the tasks that had begun (those before them succeeded), and
#: what the run was marked as.
SCENARIOS: dict[str, tuple[str, dict[str, str], str]] = {
    "lifecycle, nodes are waited for": (
        "gpu_lifecycle.demo",
        {f"capacity.pool_{pool}.await_capacity": "deferred" for pool in POOLS},
        "failed",
    ),
    "lifecycle, probes run": (
        "gpu_lifecycle.demo",
        {of(SHARED, PROBE[SHARED]): "deferred", of(WHOLE, PROBE[WHOLE]): "running"},
        "failed",
    ),
    "lifecycle, probes wait for a retry or a worker": (
        "gpu_lifecycle.demo",
        {of(SHARED, PROBE[SHARED]): "up_for_retry", of(WHOLE, PROBE[WHOLE]): "queued"},
        "failed",
    ),
    "lifecycle, marked a success": (
        "gpu_lifecycle.demo",
        {of(SHARED, PROBE[SHARED]): "deferred", of(WHOLE, PROBE[WHOLE]): "running"},
        "success",
    ),
    "lifecycle, drain runs": (
        "gpu_lifecycle.demo",
        {**{of(pool, "publish"): "success" for pool in POOLS}, f"teardown.drain_{SHARED}": "running"},
        "failed",
    ),
    "revalidation, probes run": ("gpu_revalidate.demo", {of(SHARED, PROBE[SHARED]): "deferred"}, "failed"),
    "revalidation, nothing has a worker": ("gpu_revalidate.demo", {"preflight.acquire_turn": "queued"}, "failed"),
    "drain by hand, replacements are waited for": (
        "gpu_drain.demo",
        {f"replacement.pool_{pool}.await_capacity": "deferred" for pool in POOLS},
        "failed",
    ),
    "drain by hand, pods are evicted": ("gpu_drain.demo", {"drain": "running"}, "failed"),
    "teardown, approval is waited for": ("gpu_teardown.demo", {"teardown.approve": "awaiting_input"}, "failed"),
    "teardown, drain runs": ("gpu_teardown.demo", {f"teardown.drain_{SHARED}": "running"}, "failed"),
}

#: Tasks of a teardown that a person marked, while nothing had failed: the DAG, the tasks that had begun, and what was
#: marked (``*``: all tasks of the teardown) as what.
MARKED: dict[str, tuple[str, dict[str, str], str]] = {
    "the approval is skipped": (
        "gpu_teardown.demo",
        {"teardown.approve": "awaiting_input"},
        "teardown.approve:skipped",
    ),
    "the approval is a success": (
        "gpu_teardown.demo",
        {"teardown.approve": "awaiting_input"},
        "teardown.approve:success",
    ),
    "everything is skipped": ("gpu_teardown.demo", {"teardown.plan": "running"}, "*:skipped"),
    "everything is a success": ("gpu_teardown.demo", {"teardown.plan": "running"}, "*:success"),
    "the leak check is a success": (
        "gpu_teardown.demo",
        {"teardown.leak_check": "running"},
        "teardown.leak_check:success",
    ),
    "of a lifecycle, everything is skipped": ("gpu_lifecycle.demo", {"teardown.plan": "running"}, "*:skipped"),
}

CLEAN_UP = {of(pool, "clean_up") for pool in POOLS}
#: What then still has to run, by family; of a lifecycle whose validation is over, what of a teardown.
GIVES_BACK = {
    "lifecycle": {*CLEAN_UP, "release_turn", "teardown.undo_freeze", "teardown.release_turn", "run_verdict"},
    "revalidation": {*CLEAN_UP, "release_turn", "run_verdict"},
    "teardown": {"teardown.undo_freeze", "teardown.release_turn", "run_verdict"},
    "drain by hand": {
        *(f"replacement.pool_{pool}.clean_up" for pool in POOLS),
        *("undo_cordons", "release_turn", "run_verdict"),
    },
}


def gives_back(name: str) -> set[str]:
    return GIVES_BACK["teardown" if "drain runs" in name else name.split(",")[0]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("airflow")
    database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db"}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _PLAY,
            str(ROOT / "dags"),
            *(str(path) for path in sorted((ROOT / "dags").glob("*.py"))),
        ],
        env=airflow_environment(home, None, **database),
        input=json.dumps({**SCENARIOS, **MARKED}),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "@@@" in done.stdout, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    value: dict[str, Any] = json.loads(done.stdout.split("@@@", 1)[1])
    return value


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_run_ended_by_hand_gives_back_and_is_no_success(ended: dict[str, Any], name: str) -> None:
    found = ended[name]
    assert set(found["ran"]) == gives_back(name)
    assert len(found["ran"]) == len(gives_back(name))
    assert found["ran"][-1] == "run_verdict"
    assert found["state"] == "failed", found["said"]


@pytest.mark.parametrize("name", list(MARKED))
def test_a_teardown_whose_tasks_were_marked_is_no_success(ended: dict[str, Any], name: str) -> None:
    """No task failed, and Airflow's marks leave nothing that a task has shown."""
    found = ended[name]
    assert found["ran"][-1] == "run_verdict"
    assert "has not shown that nothing is left" in found["said"]
    assert found["state"] == "failed"


@pytest.mark.parametrize("name", [name for name in SCENARIOS if gives_back(name) >= CLEAN_UP])
def test_the_turn_is_given_back_after_the_clean_up(ended: dict[str, Any], name: str) -> None:
    ran = ended[name]["ran"]
    assert max(ran.index(task_id) for task_id in CLEAN_UP) < ran.index("release_turn")


@pytest.mark.parametrize("name", [name for name in SCENARIOS if "teardown.undo_freeze" in gives_back(name)])
def test_freeze_and_cordons_are_taken_back_in_the_clusters_turn(ended: dict[str, Any], name: str) -> None:
    ran = ended[name]["ran"]
    assert ran.index("teardown.undo_freeze") < ran.index("teardown.release_turn")


@pytest.mark.parametrize("name", [name for name in SCENARIOS if "undo_cordons" in gives_back(name)])
def test_cordons_of_a_drain_by_hand_are_taken_back_in_the_clusters_turn(ended: dict[str, Any], name: str) -> None:
    ran = ended[name]["ran"]
    assert ran.index("undo_cordons") < ran.index("release_turn")
