"""A thin client of Airflow's REST API, for the demo and the e2e tests."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import httpx

#: How often a request that may be repeated is sent.
TRIES = 6


class ApiError(Exception):
    """Airflow's REST API answered with an error; the message holds its detail."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class AirflowApi:
    """Logs in once and renews the token when it has expired.

    :param url: base URL, for example ``http://localhost:8080``.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)
        self._login = {"username": user, "password": password}
        self._authenticate()

    def close(self) -> None:
        self._client.close()

    def _authenticate(self) -> None:
        response = self._client.post("/auth/token", json=self._login)
        response.raise_for_status()
        self._client.headers["Authorization"] = f"Bearer {response.json()['access_token']}"

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """One request below ``/api/v2``.

        After a 401 it logs in again. SQLite has one writer at a time, so a busy Airflow occasionally answers 500:
        requests that are safe to repeat are repeated.
        """
        for attempt in range(TRIES):
            response = self._client.request(method, f"/api/v2{path}", **kwargs)
            if response.status_code == 401 and attempt == 0:
                self._authenticate()
                continue
            if response.status_code < 500 or method not in ("GET", "PATCH") or attempt == TRIES - 1:
                break
            time.sleep(1.0)
        if response.status_code >= 400:
            try:
                detail = response.json().get("detail", response.text)
            except ValueError:
                detail = response.text
            raise ApiError(response.status_code, f"{method} {path}: {response.status_code}: {detail}")
        return response.json() if response.content else None

    # --- DAGs and runs -----------------------------------------------------------------------------------------------
    def wait_for_dag(self, dag_id: str, timeout: float = 90) -> None:
        """Wait until the DAG processor has stored the DAG, then switch it on."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.call("PATCH", f"/dags/{dag_id}", json={"is_paused": False})
                return
            except ApiError as error:
                if error.status != 404 or time.monotonic() > deadline:
                    errors = self.call("GET", "/importErrors").get("import_errors", [])
                    if errors:
                        raise ApiError(error.status, f"{error}; import errors: {errors[0]['stack_trace']}") from error
                    raise
            time.sleep(0.5)

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a Dag run; returns its run id. The id is chosen here, so a retry after a 500 starts no second run."""
        run_id = f"manual__{datetime.now(UTC).isoformat()}"
        body = {"logical_date": None, "dag_run_id": run_id, "conf": conf or {}}
        for attempt in range(TRIES):
            try:
                self.call("POST", f"/dags/{dag_id}/dagRuns", json=body)
                break
            except ApiError as error:
                if error.status == 409 and attempt > 0:
                    break
                if error.status < 500 or attempt == TRIES - 1:
                    raise
                time.sleep(1.0)
        return run_id

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        value: dict[str, Any] = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        return value

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """All task instances of a run."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        value: list[dict[str, Any]] = self.call("GET", path, params={"limit": 500})["task_instances"]
        return value

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """One XCom value, or ``None`` if there is none."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        try:
            return self.call("GET", path, params={"deserialize": "true"})["value"]
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """The log of one try, as text; an exception in one line per link of its chain, without the traceback."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        value = self.call("GET", path, params={"full_content": "true"}, headers={"Accept": "application/json"})
        lines = []
        for entry in value.get("content", []):
            if isinstance(entry, dict):
                lines.append(" ".join(str(entry.get(k, "")) for k in ("timestamp", "level", "event")).strip())
                for error in entry.get("error_detail") or []:
                    lines.append(f"{error.get('exc_type')}: {error.get('exc_value')}")
            else:
                lines.append(str(entry))
        return "\n".join(lines)

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str = "Approve") -> None:
        """Answer a human-in-the-loop task."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"
        self.call("PATCH", path, json={"chosen_options": [option], "params_input": {}})
