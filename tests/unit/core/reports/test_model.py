"""What a run left, sorted out for its report."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.pools.assets import PoolState
from gpu_fleet.core.reports import model
from gpu_fleet.core.reports.model import Left, section, sort_out
from gpu_fleet.operators import lock
from gpu_fleet.operators.admission import admit
from gpu_fleet.operators.preflight import drift
from gpu_fleet.operators.validation import probes as validation
from gpu_fleet.operators.validation import publish
from tests.unit.report_objects import NOW, broken, healthy, report, run_of

VERDICT = {
    "pool": "shared-a10g",
    "outcome": "Passed",
    "reason": "ValidatedWithout",
    "message": "m",
    "was": "NotReady",
    "now": "Ready",
    "validUntil": "2026-09-21T15:00:00+00:00",
    "without": ["n2"],
    "remediation": {"quarantined": ["n2"]},
    "older": {"n9": ["sharing time-slicing-4 -> time-slicing-8"]},
}


def test_the_keys_are_those_of_the_tasks() -> None:
    assert (model.REPORT, model.VERDICT) == (validation.REPORT, publish.VERDICT)
    assert (model.DRIFT, model.UNREAD, model.SKIPPED) == (drift.DRIFT, drift.UNREAD, lock.SKIPPED)
    assert admit.ADMISSION == model.ADMISSION


def test_the_published_verdict_counts_and_reports_are_in_order_of_time() -> None:
    later = report(probe="throughput", started_at=NOW + 100)
    remains = sort_out(
        [
            Left("t2", "report", later.to_json()),
            Left("t1", "report", broken().to_json()),
            Left("publish", "verdict", VERDICT),
        ]
    )
    assert remains.pools == ["shared-a10g"]
    found = section(remains, "shared-a10g")
    assert [one.probe for one in found.reports] == ["sharing", "throughput"]
    assert (found.finding.reason, found.finding.without) == ("ValidatedWithout", ("n2",))
    assert (found.was, found.now) == (PoolState.NOT_READY, PoolState.READY)
    assert found.remediation == {"quarantined": ["n2"]}
    assert found.older == {"n9": ("sharing time-slicing-4 -> time-slicing-8",)}
    assert (found.proven, found.bad) == (True, False)


def test_before_it_is_published_the_reports_tell() -> None:
    found = section(sort_out([Left("t1", "report", broken().to_json())]), "shared-a10g")
    assert (found.finding.reason, found.now) == ("AllocatableMismatch", None)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "s3://bucket/xcom/1",
        7,
        [],
        {"schema": "gpu-fleet.io/validation/v1"},
        {"schema": "gpu-fleet.io/validation/v1", "pool": 1},
    ],
)
def test_what_is_no_report_is_named_and_does_no_harm(value: Any) -> None:
    remains = sort_out([Left("t1", "report", value), Left("t2", "report", healthy().to_json())])
    assert remains.unreadable == ("t1: report",)
    assert remains.pools == ["shared-a10g"]


def test_reports_of_other_kinds_are_passed_over() -> None:
    """The leak check's result has the same key."""
    assert sort_out([Left("leak_check", "report", {"leaks": []})]).unreadable == ()


@pytest.mark.parametrize("value", [None, "x", {"pool": "p", "was": 3, "without": "x", "remediation": []}])
def test_malformed_verdicts(value: Any) -> None:
    remains = sort_out([Left("publish", "verdict", value)])
    for pool in remains.pools:
        assert section(remains, pool).now is None


def test_drift_of_several_tasks_is_one() -> None:
    one, two = {"kind": "changed", "object": "a"}, {"kind": "deleted", "object": "b"}
    assert sort_out([]).drift is None
    assert sort_out([Left("d1", "drift", [])]).drift == ()
    assert sort_out([Left("d1", "drift", [one]), Left("d2", "drift", [two])]).drift == (one, two)


def test_what_was_not_compared_and_why_nothing_was_looked_at() -> None:
    unread, busy = {"object": "a", "reason": "Forbidden"}, {"reason": "ClusterBusy", "message": "held by x"}
    remains = sort_out([Left("d", "unread", [unread]), Left("turn", "skipped", busy)])
    assert (remains.unread, remains.skipped) == ((unread,), "ClusterBusy: held by x")


def test_as_json() -> None:
    value = run_of(broken()).to_json()
    assert (value["outcome"], value["pools"][0]["reason"]) == ("Failed", "AllocatableMismatch")
    assert value["pools"][0]["reports"][0] == broken().to_json()
    assert len(value["pools"][0]["history"]) == 10
