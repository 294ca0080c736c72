"""Validations of one pool in a process of its own, without a scheduler: ``python validation_worker.py JSON``.

The operators are the DAG's, in its order: protect, sharing or exclusive, throughput, clean up. A task that defers is
waited for in line. For each round one line of JSON is printed: the seconds it took, the outcome per probe, and every
check that somebody would have to look at.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.spec import parse_cluster
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from tests.unit.airflow_context import StateStore

CONSPICUOUS = ("Failed", "Inconclusive", "Busy")


class TaskInstance:
    """What the operators use of Airflow's: XComs of their run, by task."""

    def __init__(self, run_id: str, spec: Any) -> None:
        self.dag_id, self.run_id, self.task_id = "gpu_revalidate.demo", run_id, ""
        self.try_number, self.max_tries, self.map_index = 1, 2, -1
        self._xcoms: dict[tuple[str, str], Any] = {("freeze_spec", "return_value"): {"spec": spec.to_json()}}

    def xcom_pull(self, task_ids: Any = None, key: str = "return_value") -> Any:
        if isinstance(task_ids, list):
            return [self._xcoms.get((task_id, key)) for task_id in task_ids]
        return self._xcoms.get((task_ids or self.task_id, key))

    def xcom_push(self, key: str, value: Any) -> None:
        self._xcoms[self.task_id, key] = value

    def get_task_states(self, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, Any]:
        """No task here is ended from outside."""
        return {}


class NoEvents:
    """``inlet_events`` of assets that nobody has written: none blames a node."""

    def __getitem__(self, asset: Any) -> NoEvents:
        return self

    def ascending(self, ascending: bool) -> NoEvents:
        return self

    def limit(self, number: int) -> list[Any]:
        return []


async def _event(trigger: Any) -> dict[str, Any]:
    async for event in trigger.run():
        return dict(event.payload)
    raise RuntimeError("the trigger ended without an event")


def execute(task: Any, ti: TaskInstance) -> None:
    """One task to its end; what it raises is its failure."""
    ti.task_id = task.task_id
    context = {
        "ti": ti,
        "params": {},
        "task_state_store": StateStore(),
        "task": task,
        "dag": task.dag,
        "inlet_events": NoEvents(),
    }
    try:
        value = task.execute(context)
    except TaskDeferred as deferred:
        event = asyncio.run(_event(deferred.trigger))
        value = getattr(task, deferred.method_name)(context, event=event, **(deferred.kwargs or {}))
    ti.xcom_push("return_value", value)


def validate(spec: Any, pool: str, number: int) -> dict[str, Any]:
    """One validation; ``alarms`` are the conspicuous checks and the failures of tasks, in words."""
    ti, began = TaskInstance(f"healthy__{number}", spec), time.monotonic()
    alarms: list[str] = []
    outcomes: dict[str, str] = {}
    first = "sharing" if spec.pool(pool).shared else "exclusive"
    with DAG("gpu_revalidate.demo"):
        protect = ProtectNodesOperator(task_id="protect_nodes", node_pool=pool)
        probes = [RunProbesOperator(task_id=probe, node_pool=pool, probe=probe) for probe in (first, "throughput")]
        clean_up = CleanUpValidationOperator(task_id="clean_up", node_pool=pool)
        protect >> probes[0] >> probes[1] >> clean_up
    for task in (protect, *probes, clean_up):
        try:
            execute(task, ti)
        except (GpuFleetError, AirflowSkipException) as error:
            alarms.append(f"{task.task_id}: {error}")
    for task in probes:
        report = ti.xcom_pull(task.task_id, "report") or {"outcome": "no report", "nodes": [], "poolChecks": []}
        outcomes[task.task_id] = report["outcome"]
        checks = [(node["node"], check) for node in report["nodes"] for check in node["checks"]]
        checks += [("pool", check) for check in report["poolChecks"]]
        alarms += [
            f"{task.task_id} {place}: {check['reason']}: {check['message']}"
            for place, check in checks
            if check["outcome"] in CONSPICUOUS
        ]
    return {"round": number, "seconds": time.monotonic() - began, "outcomes": outcomes, "alarms": alarms}


def main() -> None:
    asked = json.loads(sys.argv[1])
    spec = parse_cluster(asked["spec"])
    for number in range(asked["rounds"]):
        print(json.dumps(validate(spec, asked["pool"], number)), flush=True)


if __name__ == "__main__":
    main()
