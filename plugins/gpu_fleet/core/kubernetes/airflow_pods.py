"""The Airflow task that a pod belongs to, by the labels that Airflow sets.

Source: apache-airflow-providers-cncf-kubernetes ``operators/pod.py`` (``_get_ti_pod_labels``; EksPodOperator inherits
it) and ``pod_generator.py`` (KubernetesExecutor's workers, whose annotations have the names in full). Label values are
cut to 63 characters; then they end in a hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAMES = ("dag_id", "task_id", "run_id")


@dataclass(frozen=True)
class AirflowTask:
    """The task instance that a pod works for, possibly of another Airflow than this one."""

    dag_id: str
    task_id: str
    run_id: str

    def __str__(self) -> str:
        run = f" in run {self.run_id}" if self.run_id else ""
        return f"task {self.task_id} of Airflow's DAG {self.dag_id}{run}"


def airflow_task(pod: Mapping[str, Any]) -> AirflowTask | None:
    """The task of a pod that Airflow created; ``None`` for other pods."""
    metadata = pod["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    found = {name: str(annotations.get(name) or labels.get(name) or "") for name in _NAMES}
    if "airflow_version" not in labels and not {"kubernetes_pod_operator", "kubernetes_executor"} & set(labels):
        return None
    return AirflowTask(**found) if found["dag_id"] and found["task_id"] else None
