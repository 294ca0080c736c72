from __future__ import annotations

import json

import pytest

from gpu_fleet.core.drain.records import Outcome, PodRecord


def record(outcome: Outcome = Outcome.WAITING, **given: object) -> PodRecord:
    return PodRecord("team", "a", "u1", "n1", "Evictable", outcome=outcome, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", Outcome)
def test_a_record_survives_storage(outcome: Outcome) -> None:
    before = record(outcome, words="no", refused=2, asked_at=1.5, grace=30.0, deadline=120.0, gpus=1)
    stored = json.loads(json.dumps(before.to_json()))
    assert PodRecord.from_json(stored) == before
    assert PodRecord.from_json({**stored, "ofAnotherVersion": 1}) == before


@pytest.mark.parametrize(
    ("outcome", "granted", "becomes"),
    [
        (Outcome.WAITING, "", Outcome.GONE),
        (Outcome.ASKED, "", Outcome.EVICTED),
        (Outcome.EVICTED, "Evicted", Outcome.EVICTED),
        (Outcome.DELETED, "Deleted", Outcome.DELETED),
        (Outcome.FORCED, "Forced", Outcome.FORCED),
        (Outcome.TERMINATING, "", Outcome.TERMINATED),
        (Outcome.TERMINATED, "", Outcome.TERMINATED),
        (Outcome.GONE, "", Outcome.GONE),
        (Outcome.LEFT, "", Outcome.LEFT),
        (Outcome.LOST, "Evicted", Outcome.LOST),
        (Outcome.STUCK, "Forced", Outcome.FORCED),
        (Outcome.STUCK, "", Outcome.TERMINATED),
    ],
)
def test_what_is_said_of_a_pod_that_is_gone(outcome: Outcome, granted: str, becomes: Outcome) -> None:
    gone = record(outcome, granted=granted)
    gone.leave(7.0)
    assert (gone.outcome, gone.gone_at) == (becomes, 7.0)
