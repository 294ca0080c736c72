"""The gate that waits for Capacity Blocks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gpu_fleet.core.gates.capacity_block import CAPACITY_BLOCKS
from gpu_fleet.core.verdict import Phase, Verdict

NOW, HOUR = 1_000_000.0, 3600.0
POOLS = {"train": {"terms": [{"id": "cr-1"}, {"tags": {"team": "ml"}}], "block": {}}}


def at(seconds: float) -> str:
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat()


def item(
    identifier: str = "cr-1", *, state: str = "active", starts: float = -HOUR, ends: float = 24 * HOUR, **more: Any
):
    return {
        "CapacityReservationId": identifier,
        "State": state,
        "ReservationType": "capacity-block",
        "InstanceType": "p5.48xlarge",
        "AvailabilityZone": "us-west-2a",
        "StartDate": at(starts),
        "EndDate": at(ends),
        **more,
    }


def judged(*items: dict[str, Any], by_tags: tuple[dict[str, Any], ...] = (), wait: float = HOUR) -> Verdict:
    args = {"pools": POOLS, "until": NOW + wait, "now": NOW, "started": NOW}
    assert [query.key for query in CAPACITY_BLOCKS.queries(args)] == ["train/0", "train/1"]
    return CAPACITY_BLOCKS.judge({"train/0": list(items), "train/1": list(by_tags)}, args)


def test_a_block_that_has_begun() -> None:
    verdict = judged(item())
    assert (verdict.phase, verdict.reason) == (Phase.READY, "CapacityBlockBegun")
    assert verdict.data is not None
    assert verdict.data["blocks"]["train"]["id"] == "cr-1"


@pytest.mark.parametrize("state", ["scheduled", "payment-pending", "pending", "assessing", "delayed", "active"])
def test_a_block_that_has_yet_to_begin(state: str) -> None:
    verdict = judged(item(state=state, starts=0.5 * HOUR))
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "CapacityBlockNotStarted")
    assert state in verdict.message
    assert "cr-1" in verdict.message


def test_a_block_whose_time_has_come_and_that_ec2_has_not_delivered() -> None:
    verdict = judged(item(state="delayed", starts=-60.0))
    assert verdict.reason == "CapacityBlockNotStarted"
    assert "yet to deliver" in verdict.message


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([], "CapacityBlockNotFound"),
        ([item(ReservationType="default")], "CapacityBlockNotFound"),
        ([item(state="scheduled", starts=2 * HOUR)], "CapacityBlockTooFar"),
        ([item(ends=1.2 * HOUR)], "CapacityBlockEnding"),
        ([item(state="expired", ends=-HOUR)], "CapacityBlockOver"),
        ([item(state="payment-failed", starts=HOUR)], "CapacityBlockOver"),
        ([item(state="cancelled")], "CapacityBlockOver"),
    ],
)
def test_what_waiting_does_not_cure(items: list[dict[str, Any]], reason: str) -> None:
    verdict = judged(*items)
    assert (verdict.phase, verdict.reason, verdict.permanent) == (Phase.FAILED, reason, True)


def test_of_several_blocks_one_in_use_is_enough_and_the_earliest_is_waited_for() -> None:
    old, new = item("cr-0", state="expired", ends=-HOUR), item("cr-2", state="scheduled", starts=0.5 * HOUR)
    assert judged(old, by_tags=(new, item("cr-3", starts=-HOUR))).ready
    verdict = judged(old, by_tags=(item("cr-4", state="scheduled", starts=0.9 * HOUR), new))
    assert "cr-2" in verdict.message


def test_every_pools_block_must_have_begun() -> None:
    pools = {"a": {"terms": [{"id": "cr-1"}], "block": {}}, "b": {"terms": [{"id": "cr-2"}], "block": {}}}
    args = {"pools": pools, "until": NOW + HOUR, "now": NOW, "started": NOW}
    coming = item("cr-2", state="scheduled", starts=60.0)
    assert not CAPACITY_BLOCKS.judge({"a/0": [item()], "b/0": [coming]}, args).ready
    assert CAPACITY_BLOCKS.judge({"a/0": [item()], "b/0": [item("cr-2")]}, args).ready
    over = item("cr-2", state="expired", ends=-HOUR)
    assert CAPACITY_BLOCKS.judge({"a/0": [coming], "b/0": [over]}, args).failed
