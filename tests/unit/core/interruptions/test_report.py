"""What the report of an interruption says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.interruptions.report import InterruptionReport, NodeOutcome, outcome_of


def pod(outcome: str, name: str = "train-0", **more: Any) -> dict[str, Any]:
    return {"namespace": "ml", "name": name, "uid": name, "node": "n1", "rule": "Evictable", "outcome": outcome} | more


def node(outcome: str = "Drained", name: str = "n1", **more: Any) -> dict[str, Any]:
    found = {"node": name, "instance": "i-1", "pool": "a10g", "kind": "SpotInterruption", "outcome": outcome}
    return found | {"at": 1000.0, "deadline": 1120.0, "emptiedAt": 1079.0} | more


REPORT = InterruptionReport("demo", 1000.0, 1080.0, (node(),), (pod("Evicted"), pod("Evicted", "b")))


@pytest.mark.parametrize(
    ("outcomes", "found"),
    [
        ([], NodeOutcome.EMPTY),
        (["Left", "Left"], NodeOutcome.EMPTY),
        (["Evicted", "Left"], NodeOutcome.DRAINED),
        (["Terminated"], NodeOutcome.DRAINED),
        (["StuckTerminating"], NodeOutcome.DRAINED),
        (["Evicted", "Forced"], NodeOutcome.FORCED),
        (["Forced", "Lost"], NodeOutcome.LOST),
    ],
)
def test_the_worst_that_befell_a_pod_is_its_nodes_outcome(outcomes: list[str], found: NodeOutcome) -> None:
    assert outcome_of([pod(each) for each in outcomes], acted=True) is found


def test_a_node_whose_pods_were_not_seen_is_not_called_empty() -> None:
    assert outcome_of([], acted=True, unseen="500") is NodeOutcome.UNSEEN
    assert outcome_of([pod("Lost")], acted=True, unseen="500") is NodeOutcome.LOST
    assert outcome_of([pod("Lost")], acted=False) is NodeOutcome.NOTED


def test_the_headline_counts_what_ended_in_time_and_how_much_time_was_left() -> None:
    assert REPORT.headline() == (
        "1 node of a10g interrupted: 2 pods ended in time, none lost; the last was gone 41 s before the end"
    )
    assert not REPORT.bad


def test_what_was_forced_or_lost_is_in_the_headline() -> None:
    worse = replace(
        REPORT,
        nodes=(node("Lost", emptiedAt=1130.0), node("Forced", "n2")),
        pods=(pod("Forced"), pod("Lost", "b"), pod("Left", "agent")),
    )
    assert "2 nodes of a10g interrupted: 1 pod ended in time, 1 of them forced, 1 LOST" in worse.headline()
    assert "10 s after the end" in worse.headline()
    assert worse.bad


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes": (node("Noted"),), "pods": ()}, "1 node noted; nothing was to be evicted now"),
        ({"nodes": (), "pods": (), "elsewhere": {"n1": "a/b"}}, "1 node already drained by another run"),
        ({"nodes": (), "pods": (), "unknown": {"i-1": "x"}}, "1 instance of the notices is no node of ours"),
        ({"nodes": (), "pods": ()}, "no node is interrupted"),
    ],
)
def test_a_run_that_did_nothing_says_why(changes: dict[str, Any], words: str) -> None:
    report = replace(REPORT, **changes)
    assert words in report.headline()
    assert not report.bad


def test_a_report_survives_its_json() -> None:
    full = replace(
        REPORT,
        elsewhere={"n9": "d/r"},
        unknown={"i-9": "gone"},
        skipped={"weaker": 2},
        problems=("p",),
        usd=1.5,
        prices="x",
    )
    assert InterruptionReport.from_json(json.loads(json.dumps(full.to_json()))).to_json() == full.to_json()
    for wrong in (None, {}, {"schema": full.to_json()["schema"]}):
        with pytest.raises(ValueError, match="no report of schema"):
            InterruptionReport.from_json(wrong)  # type: ignore[arg-type]


def test_pools_that_lost_nodes_are_those_that_were_drained() -> None:
    report = replace(REPORT, nodes=(node(), node("Forced", "n0"), node("Noted", "n3", pool="a100")))
    assert report.lost_pools() == {"a10g": ["n0", "n1"]}


def test_pods_that_a_patient_drain_leaves_make_their_node_held_and_the_report_bad() -> None:
    assert outcome_of([pod("Evicted"), pod("Left")], acted=True, held=True) is NodeOutcome.HELD
    held = node("Held", deadline=None, emptiedAt=None)
    found = replace(REPORT, nodes=(node(deadline=None), held), deed="drained")
    assert found.bad
    assert found.headline() == "2 nodes of a10g drained: 2 pods ended, none lost; pods are LEFT on 1 node"


def test_a_drain_by_hand_is_no_interruption() -> None:
    assert replace(REPORT, deed="drained").headline() == (
        "1 node of a10g drained: 2 pods ended in time, none lost; the last was gone 41 s before the end"
    )


def test_a_plan_says_what_would_happen_and_is_read_as_it_was_written() -> None:
    plan = replace(REPORT, said="Plan: 1 node", deed="drained")
    assert plan.headline() == "Plan: 1 node"
    assert InterruptionReport.from_json(plan.to_json()).to_json() == plan.to_json()


def test_a_report_of_an_earlier_version_is_about_an_interruption() -> None:
    value = REPORT.to_json()
    del value["deed"], value["said"]
    assert InterruptionReport.from_json(value).deed == "interrupted"
