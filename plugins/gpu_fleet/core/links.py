"""Where the plugin serves reports and histories: paths below the address of the Airflow UI."""

from __future__ import annotations

from urllib.parse import quote

#: Mount point of the plugin's web application in Airflow's API server.
PREFIX = "/gpu-fleet"


def report_path(dag_id: str, run_id: str) -> str:
    """Path of a run's report; run ids contain colons and plus signs."""
    return f"{PREFIX}/reports/{quote(dag_id, safe='')}/{quote(run_id, safe='')}"


def history_path(cluster: str, pool: str) -> str:
    """Path of a pool's history."""
    return f"{PREFIX}/history/{quote(cluster, safe='')}/{quote(pool, safe='')}"


def run_path(dag_id: str, run_id: str) -> str:
    """Path of a run in Airflow's own UI."""
    return f"/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def task_path(dag_id: str, run_id: str, task_id: str) -> str:
    """Path of a task instance, with its log, in Airflow's own UI."""
    return f"{run_path(dag_id, run_id)}/tasks/{quote(task_id, safe='')}"
