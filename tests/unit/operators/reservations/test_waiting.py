"""The wait for a Capacity Block: for which pools, and how long."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.verdict import ready
from gpu_fleet.operators.reservations import waiting
from gpu_fleet.operators.reservations.waiting import AwaitBlocksOperator
from tests.unit.airflow_context import StateStore
from tests.unit.operators.interruptions.test_manual import RunInstance
from tests.unit.operators.reservations.test_booking import POOL, spec


def waited(monkeypatch: pytest.MonkeyPatch, **params: Any) -> list[tuple[str, dict[str, Any], float]]:
    seen: list[tuple[str, dict[str, Any], float]] = []

    def awaited(_operator: Any, _context: Any, gate: str, args: dict[str, Any], seconds: float, **more: Any) -> Any:
        assert more["deadline"] == args["until"]
        seen.append((gate, args, seconds))
        return ready("CapacityBlockBegun", "it has begun", blocks={})

    monkeypatch.setattr(waiting, "await_gate", awaited)
    ti = RunInstance(dag_id="gpu_lifecycle.demo", run_id="r1", spec=spec())
    context = {"ti": ti, "params": params, "task_state_store": StateStore()}
    assert AwaitBlocksOperator(task_id="await").execute(context)["reason"] == "CapacityBlockBegun"
    return seen


def test_only_pools_with_a_block_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ((gate, args, seconds),) = waited(monkeypatch)
    assert (gate, list(args["pools"]), seconds) == ("capacity_blocks", [POOL], 86_400.0)
    assert args["pools"][POOL]["terms"] == [{"id": "cr-1", "tags": {}, "owner": None}]
    assert args["pools"][POOL]["block"]["margin"] == "75m"


def test_a_run_about_other_pools_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowSkipException):
        waited(monkeypatch, pools=["shared-a10g"])
    assert len(waited(monkeypatch, pools=[POOL])) == 1
