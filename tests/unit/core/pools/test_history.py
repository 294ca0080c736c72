"""Verdicts over time from asset events."""

from __future__ import annotations

from typing import Any

from gpu_fleet.core.pools.assets import PoolState, Topic
from gpu_fleet.core.pools.history import Event, by_node, verdicts


def event(topic: Topic, at: float, run: str = "r1", **extra: Any) -> Event:
    return Event(topic, at, "gpu_revalidate.demo", run, extra)


def test_validated_and_ready_of_one_run_are_one_verdict() -> None:
    found = verdicts(
        [
            event(Topic.VALIDATED, 10.0, was="Unknown", reason="Validated", nodes={"a": "Passed"}),
            event(Topic.READY, 10.01, was="Unknown", reason="Validated", nodes={"a": "Passed"}),
        ]
    )
    assert len(found) == 1
    assert (found[0].state, found[0].became, found[0].nodes) == (PoolState.READY, True, {"a": "Passed"})


def test_newest_first_with_the_changes_marked() -> None:
    found = verdicts(
        [
            event(Topic.NOT_READY, 30.0, "r3", was="Ready", reason="SharerStarved"),
            event(Topic.READY, 10.0, "r1", was="Unknown"),
            event(Topic.VALIDATED, 10.0, "r1", was="Unknown"),
            event(Topic.VALIDATED, 20.0, "r2", was="Ready"),
            event(Topic.NOT_READY, 40.0, "r4", was="NotReady", reason="SharerStarved"),
        ]
    )
    assert [(one.run_id, str(one.state), one.became) for one in found] == [
        ("r4", "NotReady", False),
        ("r3", "NotReady", True),
        ("r2", "Ready", False),
        ("r1", "Ready", True),
    ]


def test_a_run_that_was_cleared_has_two_verdicts() -> None:
    found = verdicts(
        [
            event(Topic.NOT_READY, 10.0, was="Ready"),
            event(Topic.VALIDATED, 700.0, was="NotReady"),
            event(Topic.READY, 700.0, was="NotReady"),
        ]
    )
    assert [one.state for one in found] == [PoolState.READY, PoolState.NOT_READY]


def test_only_so_many_are_shown() -> None:
    assert len(verdicts([event(Topic.VALIDATED, 100.0 * n, f"r{n}") for n in range(50)])) == 10
    assert [one.run_id for one in verdicts([event(Topic.VALIDATED, 100.0 * n, f"r{n}") for n in range(50)], 2)] == [
        "r49",
        "r48",
    ]


def test_events_of_others_count_with_what_they_have() -> None:
    """Made by hand over the REST API, or by the package's first version, whose events list the nodes' names."""
    found = verdicts(
        [
            event(Topic.READY, 10.0, "", from_rest_api=True),
            event(Topic.NOT_READY, 20.0, nodes=["a"], without="x", was=7),
        ]
    )
    assert [(one.reason, dict(one.nodes), one.without, one.became) for one in found] == [
        ("NoReason", {}, (), True),
        ("NoReason", {}, (), True),
    ]


def test_history_of_a_node() -> None:
    found = verdicts(
        [
            event(Topic.VALIDATED, 10.0, "r1", nodes={"a": "Passed", "b": "Passed"}),
            event(Topic.NOT_READY, 20.0, "r2", nodes={"b": "Failed: GpuLost"}),
        ]
    )
    nodes = by_node(found)
    assert list(nodes) == ["a", "b"]
    assert [outcome for _, outcome in nodes["b"]] == ["Failed: GpuLost", "Passed"]


def test_a_verdict_as_json() -> None:
    assert verdicts([event(Topic.READY, 10.0, was="Unknown", without=["b"])])[0].to_json() == {
        "at": 10.0,
        "state": "Ready",
        "became": True,
        "reason": "NoReason",
        "message": "",
        "dagId": "gpu_revalidate.demo",
        "runId": "r1",
        "nodes": {},
        "without": ["b"],
    }
