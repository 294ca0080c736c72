"""The end of a Capacity Block is booked as a run of ``gpu_drain`` in the future."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, DagRunTriggerException

from gpu_fleet.core.errors import Forbidden
from gpu_fleet.core.reservations.reservation import Reservation
from gpu_fleet.operators.reservations.booking import BookBlockEndOperator
from tests.unit.airflow_context import spec_at
from tests.unit.operators.interruptions.test_manual import RunInstance

POOL, DRAIN, HOUR = "whole-a100", "gpu_drain.demo", 3600.0
LOOK = "gpu_fleet.hooks.aws.reservations.reservations_of"


def block(identifier: str = "cr-1", ends: float = 24 * HOUR) -> Reservation:
    now = time.time()
    return Reservation(identifier, "active", "capacity-block", "p4d.24xlarge", total=1, start=now - 60, end=now + ends)


def spec() -> Any:
    found = spec_at("/none").to_json()
    found["nodePools"][1] |= {
        "capacityTypes": ["reserved"],
        "capacityReservations": [{"id": "cr-1"}],
        "capacityBlock": {"margin": "75m", "notice": "15m", "emptyBefore": "45m"},
    }
    return spec_at("/none", nodePools=found["nodePools"])


def book(
    monkeypatch: pytest.MonkeyPatch, *blocks: Reservation, params: dict[str, Any] | None = None, pool: str | None = POOL
) -> DagRunTriggerException:
    monkeypatch.setattr(LOOK, lambda *_: blocks)
    ti = RunInstance(dag_id="gpu_lifecycle.demo", run_id="r1", spec=spec())
    task = BookBlockEndOperator(task_id="book", trigger_dag_id=DRAIN, node_pool=pool)
    with pytest.raises(DagRunTriggerException) as error:
        task.execute({"ti": ti, "params": params or {}})
    return error.value


def test_the_run_begins_when_the_pool_stops_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    found = block()
    assert found.end is not None
    booked = book(monkeypatch, found)
    assert booked.trigger_dag_id == DRAIN
    assert booked.run_after == datetime.fromtimestamp(found.end - 75 * 60, UTC)
    assert booked.dag_run_id == f"block_end__{POOL}__cr-1__{int(found.end - 75 * 60)}"
    assert booked.skip_when_already_exists
    assert booked.conf["pools"] == [POOL]
    assert booked.conf["reservation"] == "cr-1"
    assert booked.conf["askFirst"] is False
    assert datetime.fromisoformat(booked.conf["until"]).timestamp() == pytest.approx(found.end - 45 * 60, abs=1)


def test_the_same_end_is_booked_under_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = block()
    assert book(monkeypatch, found).dag_run_id == book(monkeypatch, found).dag_run_id
    assert found.end is not None
    extended = replace(found, end=found.end + HOUR)
    assert book(monkeypatch, extended).dag_run_id != book(monkeypatch, found).dag_run_id


def test_of_several_blocks_the_one_that_ends_first_is_booked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert book(monkeypatch, block("cr-2", 48 * HOUR), block("cr-1")).conf["reservation"] == "cr-1"


def test_the_run_at_the_end_books_the_next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"pools": [POOL], "reservation": "cr-1", "until": "2026-11-30T12:00:00+00:00"}
    # It has begun with the stop of cr-1, a little early by this machine's clock.
    ending, following = block("cr-1", 75 * 60 + 5), block("cr-2", 48 * HOUR)
    assert book(monkeypatch, ending, following, params=params, pool=None).conf["reservation"] == "cr-2"


def test_the_run_at_the_end_of_an_extended_block_books_its_new_end(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"pools": [POOL], "reservation": "cr-1", "until": "2026-11-30T12:00:00+00:00"}
    assert book(monkeypatch, block("cr-1", 10 * HOUR), params=params, pool=None).conf["reservation"] == "cr-1"


@pytest.mark.parametrize(
    ("blocks", "params", "pool"),
    [
        ((), {}, POOL),
        ((block(ends=HOUR),), {}, POOL),
        ((replace(block(), state="expired"),), {}, POOL),
        ((block(),), {"pools": ["shared-a10g"]}, POOL),
        ((block(),), {}, None),
        ((block(),), {"pools": [POOL]}, None),
        ((block(),), {}, "shared-a10g"),
    ],
    ids=["no block", "stops already", "expired", "another pool's run", "a drain by hand", "of a pool", "no block pool"],
)
def test_a_run_with_nothing_to_book_is_skipped(
    monkeypatch: pytest.MonkeyPatch, blocks: tuple[Reservation, ...], params: dict[str, Any], pool: str | None
) -> None:
    monkeypatch.setattr(LOOK, lambda *_: blocks)
    ti = RunInstance(dag_id="gpu_lifecycle.demo", run_id="r1", spec=spec())
    task = BookBlockEndOperator(task_id="book", trigger_dag_id=DRAIN, node_pool=pool)
    with pytest.raises(AirflowSkipException):
        task.execute({"ti": ti, "params": params})


def test_without_the_permission_nothing_is_booked_and_nothing_bought(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> Any:
        raise Forbidden("ec2:DescribeCapacityReservations is not allowed", reason="UnauthorizedOperation")

    monkeypatch.setattr(LOOK, denied)
    ti = RunInstance(dag_id="gpu_lifecycle.demo", run_id="r1", spec=spec())
    task = BookBlockEndOperator(task_id="book", trigger_dag_id=DRAIN, node_pool=POOL)
    with pytest.raises(Forbidden):
        task.execute({"ti": ti, "params": {}})


def test_the_conf_of_a_booked_run_has_only_params_of_the_dag(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.dags.conftest import ROOT

    text = (ROOT / "dags" / "gpu_drain.py").read_text()
    assert all(f'"{key}": Param(' in text for key in book(monkeypatch, block()).conf)
