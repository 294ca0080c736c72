"""Paid and unused hours of a block."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_fleet.core.reservations.account import account_of
from gpu_fleet.core.reservations.reservation import Reservation

HOUR = 3600.0
BLOCK = Reservation("cr-1", "active", "capacity-block", "p5.48xlarge", "us-west-2a", total=2, start=0.0, end=24 * HOUR)


def test_the_parts_add_up() -> None:
    nodes = [{"created": 1 * HOUR, "emptiedAt": 23 * HOUR}]
    found = account_of(BLOCK, nodes, 23 * HOUR)
    assert found is not None
    assert (found.paid, found.late, found.early, found.idle) == (48.0, 1.0, 1.0, 24.0)
    assert found.unused == 26.0
    assert found.to_json()["unusedHours"] == 26.0


def test_a_block_without_a_node_is_unused_as_a_whole() -> None:
    found = account_of(BLOCK, [], 23 * HOUR)
    assert found is not None
    assert found.unused == found.paid == 48.0


def test_a_node_that_was_not_seen_empty_is_used_until_now() -> None:
    found = account_of(replace(BLOCK, total=1), [{"created": None, "emptiedAt": None}], 20 * HOUR)
    assert found is not None
    assert (found.late, found.early) == (0.0, 4.0)


@pytest.mark.parametrize(
    ("created", "emptied", "late", "early"),
    [(-5 * HOUR, 30 * HOUR, 0.0, 0.0), (30 * HOUR, 31 * HOUR, 24.0, 0.0), (3 * HOUR, 2 * HOUR, 3.0, 21.0)],
)
def test_moments_outside_the_block_count_as_its_ends(created: float, emptied: float, late: float, early: float) -> None:
    found = account_of(replace(BLOCK, total=1), [{"created": created, "emptiedAt": emptied}], 0.0)
    assert found is not None
    assert (found.late, found.early) == (late, early)


@pytest.mark.parametrize("changes", [{"start": None}, {"end": None}, {"total": 0}, {"end": 0.0}])
def test_what_ec2_does_not_say_is_not_guessed(changes: dict[str, float | None]) -> None:
    assert account_of(replace(BLOCK, **changes), [], HOUR) is None  # type: ignore[arg-type]
