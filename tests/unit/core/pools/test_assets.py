"""Which asset events a pool's outcome causes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.pools import assets
from gpu_fleet.core.pools.assets import NOT_VALIDATED, TORN_DOWN, PoolState, Topic
from gpu_fleet.core.validation.report import Outcome, PoolReport
from tests.unit.report_objects import broken, broken_node, busy_node, check, healthy, host, node, report

READY, VALIDATED, NOT_READY = Topic.READY, Topic.VALIDATED, Topic.NOT_READY
UNKNOWN, IS_READY, IS_NOT = PoolState.UNKNOWN, PoolState.READY, PoolState.NOT_READY


def test_uris() -> None:
    assert assets.uri("demo", "shared-a10g", NOT_READY) == "gpu-fleet://demo/shared-a10g/not-ready"
    assert assets.alias("demo", "shared-a10g") == "gpu-fleet://demo/shared-a10g"


@pytest.mark.parametrize(
    ("newest", "state"),
    [
        ({}, UNKNOWN),
        ({READY: None, VALIDATED: None, NOT_READY: None}, UNKNOWN),
        ({READY: 5.0}, IS_READY),
        ({VALIDATED: 5.0}, IS_READY),
        ({NOT_READY: 5.0}, IS_NOT),
        ({READY: 5.0, NOT_READY: 6.0}, IS_NOT),
        ({READY: 5.0, VALIDATED: 7.0, NOT_READY: 6.0}, IS_READY),
        ({READY: 5.0, NOT_READY: 5.0}, IS_NOT),
    ],
)
def test_the_newest_event_is_the_state(newest: dict[Topic, float | None], state: PoolState) -> None:
    assert assets.state_after(newest) is state


@pytest.mark.parametrize(
    ("outcome", "unknown", "ready", "not_ready"),
    [
        (Outcome.PASSED, {VALIDATED, READY}, {VALIDATED}, {VALIDATED, READY}),
        (Outcome.FAILED, {NOT_READY}, {NOT_READY}, {NOT_READY}),
        (Outcome.INCONCLUSIVE, {NOT_READY}, {NOT_READY}, {NOT_READY}),
        (Outcome.BUSY, set(), set(), set()),
        (Outcome.SKIPPED, set(), set(), set()),
        (Outcome.IDLE, set(), {NOT_READY}, set()),
        (NOT_VALIDATED, {NOT_READY}, {NOT_READY}, {NOT_READY}),
        (TORN_DOWN, set(), {NOT_READY}, set()),
    ],
)
def test_events_of_every_outcome_in_every_state(
    outcome: str, unknown: set[Topic], ready: set[Topic], not_ready: set[Topic]
) -> None:
    assert set(assets.topics_for(outcome, UNKNOWN)) == unknown
    assert set(assets.topics_for(outcome, IS_READY)) == ready
    assert set(assets.topics_for(outcome, IS_NOT)) == not_ready


@pytest.mark.parametrize("state", list(PoolState))
def test_a_look_that_did_not_take_place_is_no_news(state: PoolState) -> None:
    """As not ready the pool would become ready again by the next look, and users' jobs would start once more."""
    assert assets.topics_for(NOT_VALIDATED, state, looks_only=True) == ()
    assert assets.topics_for(Outcome.FAILED, state, looks_only=True) == (NOT_READY,)


@pytest.mark.parametrize(("state", "topics"), [(UNKNOWN, ()), (IS_NOT, ()), (IS_READY, (VALIDATED,))])
def test_one_node_alone_makes_no_pool_ready(state: PoolState, topics: tuple[Topic, ...]) -> None:
    assert assets.topics_for(Outcome.PASSED, state, one_node=True) == topics
    assert assets.topics_for(Outcome.FAILED, state, one_node=True) == (NOT_READY,)
    assert assets.topics_for(Outcome.IDLE, state, one_node=True) == ()


@pytest.mark.parametrize(("state", "topics"), [(IS_NOT, ()), (IS_READY, (VALIDATED,))])
def test_a_node_that_failed_and_was_not_proven_since_keeps_the_pool_not_ready(
    state: PoolState, topics: tuple[Topic, ...]
) -> None:
    assert assets.topics_for(Outcome.PASSED, state, unproven=["n1"]) == topics
    assert assets.topics_for(Outcome.FAILED, state, unproven=["n1"]) == (NOT_READY,)


@pytest.mark.parametrize(
    ("reports", "remediation", "left"),
    [
        ([report(node(1), node(2))], None, []),
        ([report(busy_node(1), node(2))], None, [host(1)]),
        ([report(broken_node(1), node(2))], None, [host(1)]),
        ([report(broken_node(1), node(2))], {"quarantined": [host(1)]}, []),
        ([report(broken_node(1), node(2))], {"replaced": [host(1)]}, []),
        ([report(node(2))], None, [host(1)]),
        ([report(node(1)), report(broken_node(1), probe="throughput")], None, [host(1)]),
        ([report(node(1)), report(busy_node(1), probe="throughput")], None, []),
    ],
)
def test_who_is_still_blamed(reports: list[PoolReport], remediation: dict[str, Any] | None, left: list[str]) -> None:
    assert assets.still_blamed([host(1)], reports, remediation) == left


def test_the_finding_names_the_nodes_that_the_pool_waits_for() -> None:
    good = assets.Finding(Outcome.PASSED, "Validated", "passed: sharing")
    found = assets.finding_until(good, ["n1"])
    assert (found.outcome, found.reason) == (Outcome.PASSED, "NodesUnproven")
    assert "n1" in found.message
    assert assets.finding_until(good, []) is good
    bad = assets.Finding(Outcome.FAILED, "XidError", "m")
    assert assets.finding_until(bad, ["n1"]) is bad


def test_every_outcome_is_covered() -> None:
    for outcome in Outcome:
        for state in PoolState:
            assets.topics_for(outcome, state)


def test_an_unknown_outcome_raises() -> None:
    with pytest.raises(ValueError, match="Splendid"):
        assets.topics_for("Splendid", IS_READY)


def summary(outcome: str, probe: str = "sharing", **failure: str) -> dict[str, Any]:
    return {"probe": probe, "outcome": outcome, "failures": [failure] if failure else []}


@pytest.mark.parametrize(
    ("summaries", "failure", "outcome", "reason"),
    [
        ([summary("Passed")], None, Outcome.PASSED, "Validated"),
        ([summary("Passed"), summary("Passed", "vectoradd")], None, Outcome.PASSED, "Validated"),
        ([summary("Passed"), summary("Failed", reason="RanOneAfterAnother")], None, "Failed", "RanOneAfterAnother"),
        ([summary("Failed", reason="NodeVanished"), None], None, "Failed", "NodeVanished"),
        ([summary("Inconclusive", reason="NotRefused")], None, "Inconclusive", "NotRefused"),
        ([summary("Inconclusive"), summary("Failed", reason="X")], None, "Failed", "X"),
        ([summary("Busy")], None, Outcome.BUSY, "Busy"),
        ([summary("Passed", "vectoradd"), summary("Busy")], None, Outcome.BUSY, "Busy"),
        ([summary("Passed"), summary("Busy", "throughput")], None, Outcome.PASSED, "Validated"),
        ([summary("Passed"), summary("Passed", "throughput"), summary("Busy", "dcgm")], None, "Passed", "Validated"),
        ([summary("Busy"), summary("Passed", "throughput")], None, Outcome.BUSY, "Busy"),
        ([summary("Busy", "throughput")], None, Outcome.BUSY, "Busy"),
        ([summary("Passed"), summary("Failed", "dcgm", reason="DcgmFailed")], None, "Failed", "DcgmFailed"),
        ([summary("Idle")], None, Outcome.IDLE, "Idle"),
        ([None], None, NOT_VALIDATED, NOT_VALIDATED),
        ([], None, NOT_VALIDATED, NOT_VALIDATED),
        ([summary("Passed"), None], None, NOT_VALIDATED, NOT_VALIDATED),
        ([None], {"reason": "DevicePluginAbsent", "message": "m"}, NOT_VALIDATED, "DevicePluginAbsent"),
        ([summary("Passed"), summary("Skipped", "dcgm")], None, Outcome.PASSED, "Validated"),
        ([summary("Passed")], {"reason": "CapacityLost", "message": "an earlier try"}, Outcome.PASSED, "Validated"),
    ],
)
def test_what_came_of_a_pool(
    summaries: list[dict[str, Any] | None], failure: dict[str, str] | None, outcome: str, reason: str
) -> None:
    found = assets.finding_of(summaries, failure)
    assert (found.outcome, found.reason) == (outcome, reason)


def test_only_what_passed_is_said_to_have_passed() -> None:
    found = assets.finding_of([summary("Passed"), summary("Skipped", "dcgm")], None)
    assert found.message == "passed: sharing; not applicable: dcgm"


def test_a_probe_without_a_report_is_not_said_to_have_been_nothing() -> None:
    assert "a probe left no report" in assets.finding_of([summary("Passed"), None], None).message


@pytest.mark.parametrize(("idle", "message"), [("", "the pool has no nodes"), ("cordoned: n1", "cordoned: n1")])
def test_an_idle_pool_says_why(idle: str, message: str) -> None:
    found = PoolReport.from_json(replace(report(), idle=idle).to_json())
    assert assets.finding_of([found.summary()], None).message == message


@pytest.mark.parametrize(
    ("hold", "consolidate", "expire", "seconds"),
    [(0, 300, 2_592_000, 300), (30, 300, None, 1800), (0, None, 7200, 7200), (0, None, None, 86400)],
)
def test_for_how_long_nodes_stay(hold: int, consolidate: int | None, expire: int | None, seconds: int) -> None:
    assert assets.valid_seconds(hold, consolidate, expire) == seconds


def extra_of(nodes: int, reason: str = "", message: str = "m") -> dict[str, Any]:
    """An event as the publishing task makes it, of a pool of which every node passed, or failed for a reason."""
    make = (lambda number: broken_node(number, reason)) if reason else node
    reports = [report(*(make(number) for number in range(nodes)), probe=probe) for probe in ("sharing", "throughput")]
    run = "gpu_revalidate.production-eu-west/scheduled__2026-11-23T04:00:00+00:00"
    return {
        "cluster": "production-eu-west",
        "pool": "shared-a10g-spot",
        "outcome": "Passed",
        "reason": "ValidatedWithout",
        "message": message,
        "nodes": assets.node_verdicts([host(number) for number in range(nodes)], reports),
        "run": run,
        "reports": [{"dagId": run[:34], "runId": run[34:], "taskId": "validation.pool_x.sharing", "key": "report"}] * 3,
        "at": "2026-11-23T04:00:00+00:00",
        "validUntil": "2026-11-23T05:00:00+00:00",
    }


@pytest.mark.parametrize("reason", ["", "DevicePluginNotRegistered"])
def test_fifty_nodes_fit_with_their_verdicts(reason: str) -> None:
    extra = extra_of(50, reason, "x" * 1000)
    assert assets.bounded(extra) == extra
    assert assets.size(extra) <= assets.MAX_EXTRA == 8192
    assert len(extra["nodes"]) == 50


def test_a_large_pool_keeps_its_failures_and_says_what_was_cut() -> None:
    reports = [report(*(broken_node(n) if n in (7, 311) else node(n) for n in range(500)))]
    extra = {**extra_of(1), "nodes": assets.node_verdicts([], reports)}
    small = assets.bounded(extra)
    assert assets.size(small) <= assets.MAX_EXTRA
    assert small["nodes"][host(7)] == small["nodes"][host(311)] == "Failed: AllocatableMismatch"
    assert small["cut"] == {"nodes": {"Passed": 500 - len(small["nodes"])}}


def test_what_is_written_in_other_alphabets_is_counted_as_it_is_stored() -> None:
    wordy = assets.bounded({"pool": "p", "message": "ä" * 1300})
    assert len(json.dumps(wordy)) <= assets.MAX_EXTRA
    assert wordy["message"] == "ä" * 1300
    assert assets.size(assets.bounded({"pool": "p", "message": "ä" * 9000})) <= assets.MAX_EXTRA


# --- nodes that were taken out of service ----------------------------------------------------------------------------
def without(reports: list[PoolReport], **remediation: Any) -> assets.Finding:
    failed = assets.finding_of([one.summary() for one in reports], None)
    return assets.finding_without(failed, reports, remediation)


@pytest.mark.parametrize("how", ["quarantined", "replaced"])
def test_a_pool_passes_without_the_node_that_was_taken_out_of_service(how: str) -> None:
    found = without([broken()], policy="x", **{how: [host(2)]})
    assert (found.outcome, found.reason, found.without) == (Outcome.PASSED, "ValidatedWithout", (host(2),))
    assert host(2) in found.message
    assert "AllocatableMismatch" in found.message


@pytest.mark.parametrize(
    ("reports", "remediation"),
    [
        pytest.param([broken()], {}, id="nothing was done"),
        pytest.param([broken()], {"left": [{"node": host(2), "reason": "BudgetSpent"}]}, id="left for the budget"),
        pytest.param([report(broken_node(1), broken_node(2))], {"quarantined": [host(1)]}, id="one of two was left"),
        pytest.param([report(broken_node(1))], {"quarantined": [host(1)]}, id="no node is left"),
        pytest.param([report(broken_node(1), busy_node(2))], {"quarantined": [host(1)]}, id="the other proved nothing"),
        pytest.param(
            [report(node(1), broken_node(2), pool_checks=(check("claims", Outcome.FAILED, "NodeBought", "m"),))],
            {"quarantined": [host(2)]},
            id="the pool itself failed",
        ),
        pytest.param(
            [healthy(), report(broken_node(1), broken_node(2), probe="throughput")],
            {"quarantined": [host(2)]},
            id="failed in the second probe",
        ),
    ],
)
def test_a_pool_stays_failed(reports: list[PoolReport], remediation: dict[str, Any]) -> None:
    found = without(reports, **remediation)
    assert found.outcome == Outcome.FAILED
    assert found.without == ()


def test_a_pool_that_passed_needs_no_remediation() -> None:
    assert without([healthy()], released=[host(1)]).reason == "Validated"


def test_the_worst_probe_is_the_nodes_verdict() -> None:
    verdicts = assets.node_verdicts(
        [host(9)], [healthy(), report(node(1), broken_node(2, "SharerStarved"), busy_node(3), probe="vectoradd")]
    )
    assert verdicts == {
        host(2): "Failed: SharerStarved",
        host(3): "Busy",
        host(9): "NotProbed",
        host(1): "Passed",
    }
    assert list(verdicts)[-1] == host(1)


def test_a_measurement_that_found_no_room_takes_no_proof_away() -> None:
    reports = [healthy(), report(busy_node(1), node(2), probe="dcgm")]
    assert set(assets.node_verdicts([], reports).values()) == {"Passed"}
    found = assets.finding_of([one.summary() for one in [healthy(), report(busy_node(1), probe="dcgm")]], None)
    assert found.message == "passed: sharing; no free GPU for: dcgm"


@pytest.mark.parametrize("was", list(PoolState))
def test_the_state_follows_from_the_events(was: PoolState) -> None:
    assert assets.state_now(was, ()) is was
    assert assets.state_now(was, (NOT_READY,)) is IS_NOT
    assert assets.state_now(was, (VALIDATED,)) is assets.state_now(was, (VALIDATED, READY)) is IS_READY
