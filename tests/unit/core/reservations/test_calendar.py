"""When a block can be used, and when it is given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_fleet.core.reservations.calendar import RECLAIM_S, ending, next_ending, reclaimed_at, usable, waited_for
from gpu_fleet.core.reservations.reservation import COMING, OVER, Reservation, ReservationState
from gpu_fleet.core.spec.capacity import CapacityBlock

DAY = 86_400.0
CALENDAR = CapacityBlock()
BLOCK = Reservation("cr-1", "active", "capacity-block", "p5.48xlarge", total=2, start=0.0, end=DAY)


def test_everything_is_over_before_karpenter_and_ec2_begin() -> None:
    end = ending(CALENDAR, DAY)
    assert end.stops < end.drains < end.empty < DAY - 2400 < DAY - RECLAIM_S
    assert (DAY - end.stops, DAY - end.drains, DAY - end.empty) == (4500.0, 3600.0, 2700.0)


@pytest.mark.parametrize("state", ReservationState)
def test_every_state_is_active_coming_or_over(state: ReservationState) -> None:
    groups = [state is ReservationState.ACTIVE, state in COMING, state in OVER]
    assert groups.count(True) == 1
    found = replace(BLOCK, state=state, start=DAY / 2)
    assert usable(found, CALENDAR, DAY / 2) is (state is ReservationState.ACTIVE)
    assert waited_for(found, 0.0) is (state is ReservationState.ACTIVE or state in COMING)


def test_a_block_is_not_usable_before_it_begins_or_after_it_stops() -> None:
    later = replace(BLOCK, start=100.0)
    assert not usable(later, CALENDAR, 99.0)
    assert usable(later, CALENDAR, 100.0)
    assert not usable(BLOCK, CALENDAR, DAY - 4500.0)


def test_ultraservers_are_taken_an_hour_before_the_end() -> None:
    assert reclaimed_at(BLOCK) == DAY - 1800
    assert reclaimed_at(replace(BLOCK, instance_type="p6e-gb200.36xlarge")) == DAY - 3600
    assert reclaimed_at(replace(BLOCK, end=None)) is None


def test_the_block_that_ends_first_is_given_up_first() -> None:
    second, over = replace(BLOCK, id="cr-2", end=2 * DAY), replace(BLOCK, id="cr-0", state="expired", end=DAY / 2)
    odcr = replace(BLOCK, id="cr-3", kind="default", end=DAY / 4)
    assert next_ending([second, over, odcr, BLOCK], CALENDAR, 0.0) == BLOCK
    # One that is being given up already does not count: its run books the next one.
    assert next_ending([second, BLOCK], CALENDAR, DAY - 4000) == second
    assert next_ending([BLOCK], CALENDAR, DAY) is None
