"""DAGs as Airflow's DAG processor sees them: parsed in a process of their own, from files, then serialised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

_PARSE = """
import json, sys, warnings
from collections import namedtuple
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=ResourceWarning)
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
from airflow.models.dagrun import DagRun
Instance = namedtuple("Instance", ["task_id", "state"], defaults=[None])
bag = DagBag(dag_folder=sys.argv[1], collect_dags=False)
for path in sys.argv[2:]:
    bag.process_file(path)
out = {"errors": {k: str(v) for k, v in bag.import_errors.items()}, "dags": {}}
for dag_id, dag in bag.dags.items():
    tasks = {}
    for task in dag.tasks:
        policy = getattr(task, "retry_policy", None)
        conditions = {type(each).__name__ for each in getattr(task, "preconditions", ())}
        tasks[task.task_id] = {
            "upstream": sorted(task.upstream_task_ids),
            "downstream": sorted(task.downstream_task_ids),
            "operator": type(task).__name__,
            "module": type(task).__module__,
            "retries": task.retries,
            "retry_policy": policy is not None,
            "execution_timeout": task.execution_timeout.total_seconds() if task.execution_timeout else None,
            "trigger_rule": str(task.trigger_rule.value if hasattr(task.trigger_rule, "value") else task.trigger_rule),
            "owner": task.owner,
            "skips_unselected_pools": "SelectedPool" in conditions,
            "run_if": getattr(task, "run_if", None),
            "watched": getattr(task, "watched", None),
            "gate": getattr(task, "gate", None),
            "gate_args": dict(getattr(task, "args", None) or {}),
            "component": getattr(task, "component", None),
            "node_pool": getattr(task, "node_pool", None),
            "is_teardown": task.is_teardown,
            "is_setup": task.is_setup,
            "fails_run": task.on_failure_fail_dagrun,
            "only_in_turn": "HadLock" in conditions,
            "changes_cluster": "HoldsLock" in conditions,
            "if_taken": getattr(task, "if_taken", None),
            "all_wanted": getattr(task, "all_wanted", None),
            "turn": getattr(task, "turn", None),
            "end": getattr(task, "end", None),
        }
    out["dags"][dag_id] = {
        "tasks": tasks,
        "tags": sorted(dag.tags),
        "doc": dag.doc_md,
        "params": {k: dag.params.get_param(k).schema | {"description": dag.params.get_param(k).description}
                   for k in dag.params},
        "max_active_runs": dag.max_active_runs,
        "schedule": dag.schedule,
        "catchup": dag.catchup,
        "deadlines": [alert.interval.total_seconds() for alert in dag.deadline or []],
        # What Airflow itself takes the run's state from.
        "counted": sorted(
            found.task_id
            for found in DagRun._tis_for_dagrun_state(None, dag=dag, tis=[Instance(t.task_id) for t in dag.tasks])
        ),
        "timeout": dag.dagrun_timeout.total_seconds() if dag.dagrun_timeout else None,
        "serialized": DagSerialization.to_dict(dag),
    }
print("@@@" + json.dumps(out, default=str))
"""


def airflow_environment(home: Path, clusters: Path | None, **extra: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "GPU_FLEET"))}
    env |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # A database that cannot be opened: whoever touches it while parsing fails.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nonexistent-folder/airflow.db",
        "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}",
        **extra,
    }
    if clusters is not None:
        env["GPU_FLEET_CLUSTERS_DIR"] = str(clusters)
    return env


Parse = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Parse:
    """Parse DAG files in a fresh interpreter; returns ``{"errors", "dags"}``."""

    def run(clusters: Path | None = None, files: list[Path] | None = None, **extra: str) -> dict[str, Any]:
        home = tmp_path_factory.mktemp("airflow")
        paths = [str(path) for path in files or sorted((ROOT / "dags").glob("*.py"))]
        done = subprocess.run(
            [sys.executable, "-c", _PARSE, str(ROOT / "dags"), *paths],
            env=airflow_environment(home, clusters, **extra),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "@@@" in done.stdout, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        value: dict[str, Any] = json.loads(done.stdout.split("@@@", 1)[1])
        return value

    return run


@pytest.fixture(scope="session")
def fleet(parse: Parse) -> dict[str, Any]:
    """The shipped DAGs over the shipped cluster files."""
    return parse(PYTHONHASHSEED="1")
