"""What a drain does next with a pod: every state, before, at and after each moment that matters."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gpu_fleet.core.drain.actions import (
    SETTLED,
    STUCK_AFTER_S,
    Action,
    Do,
    Limits,
    PodState,
    PodView,
    next_action,
    urgency,
)

#: The node ends at 120, pods shall be gone at 110.
SPOT = Limits(deadline=120.0, margin=10.0)
#: Evictions until 600, the drain ends at 900.
FAIL = Limits(evict_until=600.0, end=900.0)
DELETE = Limits(evict_until=600.0, end=900.0, then_delete=True)

WORDS = "evict Pod team/a: The disruption budget web-pdb needs 1 healthy pods and has 1 currently"


def pod(state: PodState = PodState.RUNNING, grace: float = 30.0, **given: Any) -> PodView:
    return PodView(state, grace, **given)


def refused(grace: float = 30.0, next_try: float = 0.0, **given: Any) -> PodView:
    return pod(grace=grace, refusals=3, words=WORDS, next_try=next_try, **given)


#: Another controller evicts until 10.
WATCHED = Limits(deadline=120.0, margin=10.0, evict_from=10.0)


@pytest.mark.parametrize(
    ("subject", "now", "do", "at"),
    [
        (pod(), 1.0, Do.WAIT, 10.0),
        (pod(), 9.9, Do.WAIT, 10.0),
        (pod(), 10.0, Do.EVICT, math.inf),
        (pod(grace=105.0), 1.0, Do.WAIT, 5.0),  # its grace has to begin earlier
        (pod(grace=105.0), 5.0, Do.EVICT, math.inf),
        (pod(grace=600.0), 1.0, Do.EVICT, math.inf),
        (refused(grace=600.0, next_try=300.0), 1.0, Do.DELETE, math.inf),
        (pod(PodState.TERMINATING), 1.0, Do.WAIT, 120.0),
        (pod(), 121.0, Do.DELETE, math.inf),
    ],
)
def test_a_pod_is_left_to_another_controller_as_long_as_there_is_time(
    subject: PodView, now: float, do: Do, at: float
) -> None:
    action = next_action(subject, now, WATCHED)
    assert (action.do, action.at) == (do, at)


RUNNING = [
    # what, pod, now, what to do, when to decide again
    ("first seen", pod(), 1.0, Do.EVICT, math.inf),
    ("first seen when its grace no longer fits: a budget may still allow it", pod(), 85.0, Do.EVICT, math.inf),
    ("first seen after the deadline", pod(), 121.0, Do.DELETE, math.inf),
    ("refused, and its pause lasts", refused(next_try=5.0), 3.0, Do.WAIT, 5.0),
    ("refused, and its pause is over", refused(next_try=5.0), 5.0, Do.EVICT, math.inf),
    ("Retry-After goes beyond the moment for its grace", refused(next_try=300.0), 3.0, Do.WAIT, 80.0),
    ("just before the moment for its grace", refused(next_try=300.0), 79.9, Do.WAIT, 80.0),
    ("at the moment for its grace", refused(next_try=300.0), 80.0, Do.DELETE, math.inf),
    ("a short grace can wait longer", refused(grace=2.0, next_try=0.0), 100.0, Do.EVICT, math.inf),
    ("a grace of 0", refused(grace=0.0, next_try=300.0), 109.0, Do.WAIT, 110.0),
    ("a grace that never fits, once refused", refused(grace=600.0, next_try=300.0), 17.0, Do.DELETE, math.inf),
    ("its deletion was refused, too", refused(next_deletion=90.0), 85.0, Do.WAIT, 90.0),
    ("its deletion is due again", refused(next_deletion=90.0), 90.0, Do.DELETE, math.inf),
    ("its deletion would be due again too late", refused(next_deletion=130.0), 119.0, Do.WAIT, 120.0),
    ("refused until the end", refused(), 120.0, Do.LOST, math.inf),
]


@pytest.mark.parametrize(("subject", "now", "do", "at"), [case[1:] for case in RUNNING], ids=[c[0] for c in RUNNING])
def test_a_running_pod_on_a_node_that_ends(subject: PodView, now: float, do: Do, at: float) -> None:
    action = next_action(subject, now, SPOT)
    assert (action.do, action.at) == (do, at)


def test_a_forced_pod_is_explained_by_its_grace_and_its_budget() -> None:
    in_time = next_action(refused(next_try=300.0), 80.0, SPOT)
    assert in_time.why == f"its grace of 30 s had to begin: {WORDS}"
    too_long = next_action(refused(grace=600.0), 17.0, SPOT)
    assert too_long.why == f"its grace of 600 s does not fit in the 93 s that are left: {WORDS}"
    assert "web-pdb" in next_action(refused(), 120.0, SPOT).why


ENDING = [
    ("terminating", pod(PodState.TERMINATING, ends_by=40.0), 20.0, Action(Do.WAIT, 120.0)),
    ("granted, not seen yet", pod(PodState.ACCEPTED), 20.0, Action(Do.WAIT, 120.0)),
    (
        "its grace ends after the instance",
        pod(PodState.TERMINATING, 600.0, ends_by=620.0),
        20.0,
        Action(Do.WAIT, 120.0, "its grace of 600 s ends after the instance"),
    ),
    (
        "terminating when the node ends",
        pod(PodState.TERMINATING, ends_by=119.0),
        120.0,
        Action(Do.LOST, why="was still terminating when the time was up"),
    ),
    ("gone", pod(PodState.GONE), 1.0, Action(Do.GONE)),
    ("gone, after the deadline", pod(PodState.GONE), 500.0, Action(Do.GONE)),
    ("its node is gone", pod(PodState.NODE_GONE), 1.0, Action(Do.LOST, why="its node no longer exists")),
    ("stopped a moment ago", pod(PodState.STOPPED, since=20.0), 21.0, Action(Do.WAIT, 20.0 + STUCK_AFTER_S)),
    (
        "stopped long ago",
        pod(PodState.STOPPED, since=20.0),
        20.0 + STUCK_AFTER_S,
        Action(Do.STUCK, why="its containers have ended, and its object stays"),
    ),
    ("stopped just before the deadline", pod(PodState.STOPPED, since=115.0), 116.0, Action(Do.WAIT, 120.0)),
    (
        "stopped, at the deadline",
        pod(PodState.STOPPED, since=119.0),
        120.0,
        Action(Do.STUCK, why="its containers have ended, and its object stays"),
    ),
    ("finished", pod(PodState.FINISHED), 1.0, Action(Do.EVICT)),
    ("finished, refused", pod(PodState.FINISHED, refusals=1, next_try=4.0), 1.0, Action(Do.WAIT, 4.0)),
    ("finished, at the deadline", pod(PodState.FINISHED), 120.0, Action(Do.GIVE_UP, why="has finished")),
]


@pytest.mark.parametrize(("subject", "now", "action"), [case[1:] for case in ENDING], ids=[c[0] for c in ENDING])
def test_a_pod_that_ends_on_a_node_that_ends(subject: PodView, now: float, action: Action) -> None:
    assert next_action(subject, now, SPOT) == action


@pytest.mark.parametrize(
    ("subject", "now", "limits", "do", "at"),
    [
        (pod(), 1.0, FAIL, Do.EVICT, math.inf),
        (refused(next_try=5.0), 1.0, FAIL, Do.WAIT, 5.0),
        (refused(next_try=700.0), 1.0, FAIL, Do.WAIT, 600.0),
        (refused(grace=10_000.0), 599.0, FAIL, Do.EVICT, math.inf),
        (refused(), 600.0, FAIL, Do.GIVE_UP, math.inf),
        (refused(), 600.0, DELETE, Do.DELETE, math.inf),
        (refused(next_deletion=605.0), 600.0, DELETE, Do.WAIT, 605.0),
        (refused(next_deletion=990.0), 600.0, DELETE, Do.WAIT, 900.0),
        (refused(), 900.0, DELETE, Do.GIVE_UP, math.inf),
        (pod(PodState.TERMINATING), 899.0, FAIL, Do.WAIT, 900.0),
        (pod(PodState.TERMINATING), 900.0, FAIL, Do.GIVE_UP, math.inf),
        (pod(PodState.FINISHED), 600.0, FAIL, Do.GIVE_UP, math.inf),
        (pod(), 1e9, Limits(), Do.EVICT, math.inf),
    ],
)
def test_a_drain_without_a_deadline_only_evicts_until_the_policy_has_its_word(
    subject: PodView, now: float, limits: Limits, do: Do, at: float
) -> None:
    action = next_action(subject, now, limits)
    assert (action.do, action.at) == (do, at)


@pytest.mark.parametrize("limits", [SPOT, FAIL, DELETE, Limits()], ids=["deadline", "fail", "delete", "endless"])
@pytest.mark.parametrize("state", PodState)
@pytest.mark.parametrize("refusals", [0, 1])
@pytest.mark.parametrize("now", [0.0, 79.0, 80.0, 110.0, 120.0, 600.0, 900.0])
def test_every_state_has_an_action_and_a_wait_lies_ahead(
    limits: Limits, state: PodState, refusals: int, now: float
) -> None:
    action = next_action(pod(state, refusals=refusals, next_try=now + 1.0, next_deletion=now + 1.0), now, limits)
    assert action.do in Do
    if action.do is Do.WAIT:
        assert action.at > now, "a wait in the past is a loop without a pause"
    if now >= limits.last_moment and refusals:
        assert action.do in SETTLED


def test_an_unknown_state_is_no_guess() -> None:
    with pytest.raises(ValueError, match="shrug"):
        next_action(PodView("shrug", 1.0), 0.0, SPOT)  # type: ignore[arg-type]


def test_the_node_that_ends_first_goes_first_and_on_it_the_longest_grace() -> None:
    keys = {
        "soon, short": urgency(60.0, 1.0, holds_gpu=False),
        "soon, long": urgency(60.0, 50.0, holds_gpu=False),
        "soon, long, gpu": urgency(60.0, 50.0, holds_gpu=True),
        "later, long": urgency(120.0, 90.0, holds_gpu=True),
        "whenever": urgency(None, 900.0, holds_gpu=True),
    }
    assert sorted(keys, key=keys.__getitem__) == [
        "soon, long, gpu",
        "soon, long",
        "soon, short",
        "later, long",
        "whenever",
    ]


#: Karpenter drains the node, and nothing ends at a known moment.
FOLLOWED = Limits(watch=True, end=900.0)


@pytest.mark.parametrize(
    ("subject", "now", "do", "at"),
    [
        (pod(), 1.0, Do.WAIT, 900.0),
        (refused(), 899.0, Do.WAIT, 900.0),
        (pod(grace=3600.0), 1.0, Do.WAIT, 900.0),
        (pod(), 900.0, Do.GIVE_UP, math.inf),
        (pod(PodState.FINISHED), 1.0, Do.GIVE_UP, math.inf),
        (pod(PodState.TERMINATING), 1.0, Do.WAIT, 900.0),
        (pod(PodState.TERMINATING), 900.0, Do.GIVE_UP, math.inf),
        (pod(PodState.NODE_GONE), 1.0, Do.LOST, math.inf),
        (pod(PodState.GONE), 1.0, Do.GONE, math.inf),
    ],
)
def test_nothing_is_asked_of_a_pod_that_karpenter_drains_at_its_leisure(
    subject: PodView, now: float, do: Do, at: float
) -> None:
    action = next_action(subject, now, FOLLOWED)
    assert (action.do, action.at) == (do, at)
