"""What is named as slower than usual, and what is not."""

from __future__ import annotations

import pytest

from gpu_fleet.core.stages.history import StageHistory
from gpu_fleet.core.stages.moments import Moment, NodeTimes, Stage
from gpu_fleet.core.stages.slower import LEAST_SAMPLES, limit_of, slower
from gpu_fleet.core.stages.summary import StageReport, summary
from tests.unit.core.stages.stage_objects import times

RUN = "gpu_lifecycle.demo/now"


def past(count: int = 20, spread: float = 0.0, **changes: object) -> list[NodeTimes]:
    """Joining took 100 s, a little more or less."""
    return [times(n, slower={Moment.REGISTERED: spread * (n % 3 - 1)}, **changes) for n in range(count)]  # type: ignore[arg-type]


def now(*late: float, moment: Moment = Moment.REGISTERED, **changes: object) -> list[NodeTimes]:
    return [times(100 + n, run=RUN, slower={moment: each}, **changes) for n, each in enumerate(late)]  # type: ignore[arg-type]


def test_the_stage_that_got_slower_is_named_with_by_how_much() -> None:
    [found] = slower(past(), now(60.0))
    assert (found.stage, found.instance_type, found.took, found.usual, found.samples) == (
        *(Stage.JOIN, "g5.xlarge"),
        *(160.0, 100.0, 20),
    )
    assert found.nodes == ("ip-10-0-0-100.us-west-2.compute.internal",)
    assert "launched → registered took 160 s, 60 s more than usual" in str(found)


@pytest.mark.parametrize(
    ("before", "new"),
    [
        (past(), now(24.0)),
        (past(spread=10.0), now(70.0)),
        (past(), now(0.0, 60.0, 0.0)),
        (past(LEAST_SAMPLES - 1), now(500.0)),
        (past(instance_type="g6.xlarge"), now(500.0)),
        (past(), now(9.0, moment=Moment.CLAIMED)),
        (past(without=(Moment.LAUNCHED,)), now(500.0)),
        (past(), now(500.0, without=(Moment.REGISTERED,))),
        (past(), now(900.0, moment=Moment.USED)),
        (past(), []),
    ],
    ids=[
        "within a quarter of the median",
        "within the pool's own spread",
        "one of three nodes",
        "too little history",
        "a history of another instance type",
        "a few seconds of a short stage",
        "a history without the stage",
        "a node without the stage",
        "no user came",
        "no new node",
    ],
)
def test_what_is_as_usual_is_not_named(before: list[NodeTimes], new: list[NodeTimes]) -> None:
    assert slower(before, new) == []


def test_an_hour_without_capacity_in_the_past_is_no_yardstick() -> None:
    bad = [times(50 + n, slower={Moment.LAUNCHED: 3000.0}) for n in range(4)]
    [found] = slower([*past(), *bad], now(300.0, moment=Moment.LAUNCHED))
    assert (found.stage, found.usual) == (Stage.LAUNCH, 2.0)


@pytest.mark.parametrize(
    ("values", "limit"),
    [([100.0] * 9, 125.0), ([2.0] * 9, 12.0), ([80.0, 90.0, 100.0, 110.0, 120.0], 100.0 + 5 * 1.4826 * 10.0)],
    ids=["a quarter more", "ten seconds more", "five deviations more"],
)
def test_limit_is_the_largest_of_three(values: list[float], limit: float) -> None:
    assert limit_of(values) == pytest.approx(limit)


def test_the_report_of_a_run_has_its_nodes_and_what_got_slower() -> None:
    history = StageHistory(0.0, (*past(), *now(60.0)))
    value = summary("shared-a10g", history, RUN)
    assert value["nodes"][0]["seconds"]["join"] == 160.0
    report = StageReport.from_json(value)
    assert (report.pool, [node.run for node in report.nodes], report.recorded) == ("shared-a10g", [RUN], 21)
    assert len(report.slower) == 1
    assert report.percentiles["g5.xlarge"]["join"].p50 == 100.0
