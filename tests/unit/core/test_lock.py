from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gpu_fleet.core.lock import (
    NAMELESS_DEPLOYMENT,
    Action,
    Holder,
    LockState,
    decide,
    held_by,
    held_longer_than,
    observe,
    read_holder,
    record,
)

ME = Holder("https://af", "gpu_lifecycle.demo", "manual__1", "2026-09-01T10:00:00Z")
OTHER_RUN = Holder("https://af", "gpu_teardown.demo", "manual__2", "2026-09-01T09:00:00Z")
ELSEWHERE = Holder("https://other", "gpu_lifecycle.demo", "manual__1")


@pytest.mark.parametrize(
    ("config_map", "turn"),
    [
        (None, LockState.FREE),
        ({"metadata": {}}, LockState.FREE),
        (record(None), LockState.FREE),
        (record(ME), LockState.OURS),
        (record(Holder(ME.deployment, ME.dag_id, ME.run_id, "another time")), LockState.OURS),
        (record(OTHER_RUN), LockState.HELD_HERE),
        (record(ELSEWHERE), LockState.HELD_ELSEWHERE),
        ({"data": {"owner": "somebody"}}, LockState.UNREADABLE),
    ],
)
def test_what_a_record_says(config_map: dict[str, Any] | None, turn: LockState) -> None:
    assert observe(config_map, ME) is turn


@pytest.mark.parametrize(
    ("turn", "state", "action"),
    [
        (LockState.FREE, None, Action.TAKE),
        (LockState.OURS, None, Action.KEEP),
        (LockState.HELD_HERE, "running", Action.WAIT),
        (LockState.HELD_HERE, "queued", Action.WAIT),
        (LockState.HELD_HERE, "success", Action.TAKE),
        (LockState.HELD_HERE, "failed", Action.TAKE),
        (LockState.HELD_HERE, None, Action.TAKE),  # Airflow has no such run any more
        (LockState.HELD_ELSEWHERE, None, Action.WAIT),
        (LockState.HELD_ELSEWHERE, "failed", Action.WAIT),  # another deployment's record is never stale by itself
        (LockState.UNREADABLE, None, Action.WAIT),
    ],
)
def test_what_to_do(turn: LockState, state: str | None, action: Action) -> None:
    assert decide(turn, state) is action


@pytest.mark.parametrize(("state", "action"), [(None, Action.WAIT), ("running", Action.WAIT), ("failed", Action.TAKE)])
def test_a_deployment_without_a_name_never_takes_the_turn_of_a_run_it_does_not_know(
    state: str | None, action: Action
) -> None:
    assert decide(LockState.HELD_HERE, state, nameless=True) is action
    says = held_by(record(Holder(NAMELESS_DEPLOYMENT, "d", "r")))
    assert "GPU_FLEET_DEPLOYMENT" in says
    assert "delete ConfigMap gpu-fleet-system/turn by hand" in says


def test_every_turn_is_decided() -> None:
    assert {decide(turn, "running") for turn in LockState} <= set(Action)


def test_an_unknown_run_state_raises() -> None:
    with pytest.raises(ValueError, match="paused"):
        decide(LockState.HELD_HERE, "paused")


def test_a_record_reads_back() -> None:
    assert read_holder(record(ME)) == ME


def test_a_swap_carries_version_and_identity_of_what_it_replaces() -> None:
    written = record(ME, {"metadata": {"resourceVersion": "7", "uid": "u"}})
    assert (written["metadata"]["resourceVersion"], written["metadata"]["uid"]) == ("7", "u")
    assert "resourceVersion" not in record(ME)["metadata"]


def test_an_unreadable_record_comes_with_a_remedy() -> None:
    assert "delete ConfigMap gpu-fleet-system/turn" in held_by({"data": {"owner": "somebody"}})
    assert held_by({}) == "no run"


@pytest.mark.parametrize(
    ("config_map", "expected"),
    [
        (None, False),
        (record(None), False),
        (record(ME), True),
        (record(Holder("a", "d", "r", "2026-09-01T11:30:00Z")), False),
        (record(Holder("a", "d", "r", "2026-09-01T13:30:00+02:00")), False),
        (record(Holder("a", "d", "r", "some day")), True),
        ({"data": {"owner": "somebody"}}, True),
    ],
)
def test_whether_somebody_has_had_the_turn_for_longer(config_map: dict[str, Any] | None, expected: bool) -> None:
    assert held_longer_than(3600, config_map, datetime(2026, 9, 1, 12, 0, tzinfo=UTC)) is expected
