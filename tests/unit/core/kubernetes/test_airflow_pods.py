from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.kubernetes.airflow_pods import airflow_task

TASK = {"dag_id": "train_on_request", "task_id": "train", "run_id": "manual__2026-01-01T0000000000-0123abcd0"}
#: What EksPodOperator sets (apache-airflow-providers-cncf-kubernetes, ``_get_ti_pod_labels``).
LABELS = {**TASK, "kubernetes_pod_operator": "True", "try_number": "1", "airflow_version": "3.3.2"}


def pod(labels: dict[str, str], annotations: dict[str, str] | None = None) -> dict[str, Any]:
    return {"metadata": {"name": "p", "namespace": "t", "labels": labels, "annotations": annotations or {}}}


def test_a_pod_of_a_pod_operator_names_its_task() -> None:
    assert str(airflow_task(pod(LABELS))) == (
        "task train of Airflow's DAG train_on_request in run manual__2026-01-01T0000000000-0123abcd0"
    )


def test_a_worker_of_the_kubernetes_executor_has_the_names_in_full() -> None:
    full = {**TASK, "run_id": "manual__2026-01-01T00:00:00+00:00"}
    found = airflow_task(pod({**TASK, "kubernetes_executor": "True"}, full))
    assert found is not None
    assert found.run_id == "manual__2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize("labels", [{}, {"app": "web"}, TASK, {"airflow_version": "3.3.2"}, {**LABELS, "task_id": ""}])
def test_other_pods_are_nobodys_task(labels: dict[str, str]) -> None:
    assert airflow_task(pod(labels)) is None
