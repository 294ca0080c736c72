"""What EC2 says of a reservation, and how the pools' ones are asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gpu_fleet.core.reservations.reservation import Reservation, each_once, epoch, queries
from gpu_fleet.core.spec.capacity import ReservationTerm

ITEM: dict[str, Any] = {
    "CapacityReservationId": "cr-1",
    "OwnerId": "123456789012",
    "InstanceType": "p5.48xlarge",
    "InstancePlatform": "Linux/UNIX",
    "AvailabilityZone": "us-west-2a",
    "Tenancy": "default",
    "TotalInstanceCount": 4,
    "AvailableInstanceCount": 3,
    "State": "active",
    "StartDate": datetime(2026, 11, 30, 12, tzinfo=UTC),
    "EndDate": "2026-12-01T12:00:00.000Z",
    "InstanceMatchCriteria": "targeted",
    "ReservationType": "capacity-block",
    "Tags": [{"Key": "team", "Value": "ml"}],
}


def test_an_item_of_the_api() -> None:
    found = Reservation.of(ITEM)
    assert (found.id, found.block, found.total, found.available) == ("cr-1", True, 4, 3)
    assert found.end is not None
    assert found.start is not None
    assert found.end - found.start == 86_400
    assert found.tags == {"team": "ml"}
    assert str(found) == "Capacity Block cr-1 (4 x p5.48xlarge in us-west-2a)"


def test_a_block_that_has_yet_to_begin_says_its_size_in_a_tag() -> None:
    """Amazon EC2 User Guide, 'View Capacity Blocks'."""
    tag = {"Key": "aws:ec2capacityreservation:incrementalRequestedQuantity", "Value": "8"}
    item = {**ITEM, "State": "scheduled", "TotalInstanceCount": 0, "AvailableInstanceCount": 0, "Tags": [tag]}
    assert (Reservation.of(item).total, Reservation.of(item).available) == (8, 0)


def test_an_item_with_little_in_it() -> None:
    found = Reservation.of({"CapacityReservationId": "cr-2"})
    assert (found.kind, found.block, found.end, found.total) == ("default", False, None, 0)


def test_one_call_per_term_in_any_state() -> None:
    by_id = ReservationTerm(id="cr-1")
    by_tags = ReservationTerm(tags={"team": "ml", "use": "*"}, owner="123456789012")
    first, second = queries("pool", [by_id, by_tags])
    assert (first.key, first.params) == ("pool/0", {"CapacityReservationIds": ["cr-1"]})
    assert "InvalidCapacityReservationId.NotFound" in first.absent_codes
    assert second.params == {
        "Filters": [
            {"Name": "tag:team", "Values": ["ml"]},
            {"Name": "tag-key", "Values": ["use"]},
            {"Name": "owner-id", "Values": ["123456789012"]},
        ]
    }


def test_what_two_terms_find_counts_once() -> None:
    assert [each.id for each in each_once([ITEM, {**ITEM, "CapacityReservationId": "cr-0"}, ITEM])] == ["cr-0", "cr-1"]


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, None), ("", None), ("1970-01-01T00:01:00Z", 60.0), (datetime(1970, 1, 1), 0.0)],  # noqa: DTZ001
)
def test_moments(value: Any, found: float | None) -> None:
    assert epoch(value) == found
