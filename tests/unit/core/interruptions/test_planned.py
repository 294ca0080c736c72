"""When a planned drain begins: at once, or in the next window, but never too late for its instance."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gpu_fleet.core.interruptions.messages import Kind
from gpu_fleet.core.interruptions.planned import PlannedNode, moment, next_window, split, start_of, window_under_way
from gpu_fleet.core.spec.interruptions import MaintenanceWindow

#: Saturdays, 02:00 to 04:00 UTC. 2026-11-28 is a Saturday.
WINDOW = MaintenanceWindow.model_validate({"schedule": "0 2 * * 6", "duration": "2h"})
LEAD_S = 600.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def planned(kind: Kind = Kind.SCHEDULED, deadline: str | None = None) -> PlannedNode:
    return PlannedNode("n1", "i-1", kind, None if deadline is None else at(deadline))


@pytest.mark.parametrize(
    ("now", "begins"),
    [
        ("2026-11-25T12:00:00", "2026-11-28T02:00:00"),
        ("2026-11-28T01:59:59", "2026-11-28T02:00:00"),
        ("2026-11-28T01:59:59.900000", "2026-11-28T02:00:00"),
        ("2026-11-28T02:00:00", "2026-12-05T02:00:00"),
        ("2026-12-31T23:00:00", "2027-01-02T02:00:00"),
    ],
)
def test_the_next_window_begins_after_now(now: str, begins: str) -> None:
    assert next_window(WINDOW, at(now)) == at(begins)


@pytest.mark.parametrize(
    ("now", "under_way"),
    [
        ("2026-11-28T01:59:59.900000", False),
        ("2026-11-28T02:00:00", True),
        ("2026-11-28T02:00:00.400000", True),
        ("2026-11-28T03:59:59", True),
        ("2026-11-28T04:00:00", False),
        ("2026-11-25T02:30:00", False),
    ],
)
def test_a_window_is_under_way_from_its_beginning_for_its_duration(now: str, under_way: bool) -> None:
    assert window_under_way(WINDOW, at(now)) is under_way


def test_windows_may_overlap() -> None:
    hourly = MaintenanceWindow.model_validate({"schedule": "0 * * * *", "duration": "90m"})
    assert window_under_way(hourly, at("2026-11-28T02:59:59"))


@pytest.mark.parametrize(
    ("deadline", "begins"),
    [
        (None, "2026-11-28T02:00:00"),
        ("2026-12-14T00:00:00", "2026-11-28T02:00:00"),
        ("2026-11-28T02:10:00", "2026-11-28T02:00:00"),
        # The drain may take ten minutes: in the window it would be too late.
        ("2026-11-28T02:09:59", None),
        ("2026-11-26T00:00:00", None),
        ("2026-11-20T00:00:00", None),
    ],
)
def test_a_scheduled_change_waits_for_a_window_that_comes_in_time(deadline: str | None, begins: str | None) -> None:
    start = start_of(planned(deadline=deadline), WINDOW, at("2026-11-25T12:00:00"), lead_s=LEAD_S)
    assert start.at == (None if begins is None else at(begins))
    assert start.why


def test_without_a_window_and_in_one_it_begins_at_once() -> None:
    assert start_of(planned(), None, at("2026-11-25T12:00:00"), lead_s=LEAD_S).at is None
    assert start_of(planned(), WINDOW, at("2026-11-28T03:00:00"), lead_s=LEAD_S).at is None


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.SCHEDULED])
def test_what_may_end_at_any_time_waits_for_no_window(kind: Kind) -> None:
    assert start_of(planned(kind), WINDOW, at("2026-11-25T12:00:00"), lead_s=LEAD_S).at is None


def test_nodes_are_split_by_when_their_drain_begins() -> None:
    soon, late = planned(Kind.REBALANCE), planned(deadline="2026-12-14T00:00:00")
    now, later, begins = split([soon, late], WINDOW, at("2026-11-25T12:00:00"), lead_s=LEAD_S)
    assert (now, later) == ([soon], [late])
    assert begins is not None
    assert moment(begins).isoformat() == "2026-11-28T02:00:00+00:00"
    assert split([soon], WINDOW, at("2026-11-25T12:00:00"), lead_s=LEAD_S) == ([soon], [], None)


def test_a_planned_node_is_read_as_it_was_written() -> None:
    node = planned(deadline="2026-12-14T00:00:00")
    assert PlannedNode.from_json(node.to_json()) == node
    for broken in ({"node": "n1"}, {**node.to_json(), "kind": "Other"}, None):
        with pytest.raises(ValueError, match=r"no planned node|Other"):
            PlannedNode.from_json(broken)  # type: ignore[arg-type]
