"""Which asset events a pool's outcome causes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_fleet.core import assets
from gpu_fleet.core.assets import NOT_VALIDATED, TORN_DOWN, PoolState, Topic
from gpu_fleet.core.validation_report import Outcome

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
        ([summary("Idle")], None, Outcome.IDLE, "Idle"),
        ([None], None, NOT_VALIDATED, NOT_VALIDATED),
        ([], None, NOT_VALIDATED, NOT_VALIDATED),
        ([summary("Passed"), None], None, NOT_VALIDATED, NOT_VALIDATED),
        ([None], {"reason": "DevicePluginAbsent", "message": "m"}, NOT_VALIDATED, "DevicePluginAbsent"),
        ([summary("Passed")], {"reason": "CapacityLost", "message": "an earlier try"}, Outcome.PASSED, "Validated"),
    ],
)
def test_what_came_of_a_pool(
    summaries: list[dict[str, Any] | None], failure: dict[str, str] | None, outcome: str, reason: str
) -> None:
    found = assets.finding_of(summaries, failure)
    assert (found.outcome, found.reason) == (outcome, reason)


@pytest.mark.parametrize(
    ("hold", "consolidate", "expire", "seconds"),
    [(0, 300, 2_592_000, 300), (30, 300, None, 1800), (0, None, 7200, 7200), (0, None, None, 86400)],
)
def test_for_how_long_nodes_stay(hold: int, consolidate: int | None, expire: int | None, seconds: int) -> None:
    assert assets.valid_seconds(hold, consolidate, expire) == seconds


def test_an_extra_always_fits() -> None:
    small = {"pool": "p", "nodes": ["n"], "message": "m"}
    assert assets.bounded(small) == small
    large = {"pool": "p", "nodes": [f"ip-10-0-0-{i}.us-west-2.compute.internal" for i in range(500)], "message": "m"}
    assert assets.bounded(large)["nodeCount"] == 500
    wordy = assets.bounded({"pool": "p", "message": "ä" * 9000})
    assert assets.size(wordy) <= assets.MAX_EXTRA
    assert json.dumps(wordy)
