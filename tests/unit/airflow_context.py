"""The part of Airflow's task context that the package's operators use, without an Airflow."""

from __future__ import annotations

from typing import Any

from gpu_fleet.hooks.files.clusters import load_cluster


class StateStore(dict[str, Any]):
    """``context["task_state_store"]``: survives retries of a task."""

    def set(self, key: str, value: Any) -> None:
        if value is None:  # apache-airflow 3.3.2 sdk/execution_time/context.py, TaskStateStoreAccessor
            raise ValueError("Cannot set value as None")
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


class TaskInstance:
    """``context["ti"]`` of a run that froze the demo cluster's spec, unless told otherwise."""

    def __init__(self, *, dag_id: str = "gpu_lifecycle.demo", run_id: str = "manual__1", spec: Any = None) -> None:
        self.dag_id, self.run_id = dag_id, run_id
        self.try_number, self.max_tries = 1, 2
        self.xcoms: dict[str, Any] = {}
        self.run_states: dict[tuple[str, str], str] = {}
        self.task_states: dict[str, str | None] = {}
        self._frozen = {"spec": (spec or load_cluster("demo")).to_json()}

    def xcom_pull(self, task_ids: str | None = None, key: str = "return_value") -> Any:
        return self._frozen if task_ids == "freeze_spec" else self.xcoms.get(key)

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def get_task_states(
        self, dag_id: str, task_ids: list[str] | None = None, run_ids: list[str] | None = None
    ) -> dict[str, Any]:
        run_ids = run_ids or []
        found = {name: state for name, state in self.task_states.items() if task_ids is None or name in task_ids}
        return {self.run_id: found} if dag_id == self.dag_id and self.run_id in run_ids else {}

    def get_dagrun_state(self, dag_id: str, run_id: str) -> Any:
        from airflow.sdk.api.datamodels._generated import DagRunState
        from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
        from airflow.sdk.execution_time.comms import ErrorResponse

        if (dag_id, run_id) not in self.run_states:
            detail = {"status_code": 404, "detail": {"reason": "not_found"}}
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))
        # An enumeration, whatever the signature in Airflow says (task_runner.RuntimeTaskInstance.get_dagrun_state).
        return DagRunState(self.run_states[dag_id, run_id])


def context(ti: TaskInstance | None = None, **params: Any) -> dict[str, Any]:
    """A task's context."""
    return {"ti": ti or TaskInstance(), "params": params, "task_state_store": StateStore()}


def spec_at(kubeconfig: str, **changes: Any) -> Any:
    """The demo cluster's spec, reached through a kubeconfig."""
    from gpu_fleet.core.spec import parse_cluster

    value = load_cluster("demo").to_json()
    value["cluster"]["access"] = {"mode": "kubeconfig", "path": kubeconfig}
    return parse_cluster({**value, **changes})
