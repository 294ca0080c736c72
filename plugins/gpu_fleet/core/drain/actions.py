"""What a drain does next with a pod whose node ends at a known moment, or of a drain that waits for budgets. Pure.

A spot instance ends two minutes after its notice, with whatever runs on it. Each pod is to get its own SIGTERM and its
own grace period before that. So a pod that a PodDisruptionBudget still protects at ``deadline - margin - its grace``
is deleted directly, which no budget can forbid: it would end a moment later without any notice.

Without a deadline nothing is deleted directly, unless the cluster file says so (``drain.whenTimeExpires``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

#: Seconds for which a pod whose containers have ended may keep its object before that counts as stuck: the Job
#: controller, for one, has a finalizer on each of its pods (``batch.kubernetes.io/job-tracking``) and takes it away
#: soon after.
STUCK_AFTER_S = 10.0
#: Why a pod was left, or lost: it begins the reason in its record.
STILL_RAN = "still ran when the time was up"
STILL_TERMINATING = "was still terminating when the time was up"


class PodState(StrEnum):
    """What is observed of a pod."""

    RUNNING = "Running"  # or about to
    FINISHED = "Finished"  # Succeeded or Failed, and not deleted
    ACCEPTED = "Accepted"  # the server has granted our request, and its effect has not been observed yet
    TERMINATING = "Terminating"
    STOPPED = "Stopped"  # deleted, its containers have ended, and its object is still there
    GONE = "Gone"  # by its UID
    NODE_GONE = "NodeGone"  # the object is there, and its node is not


class Do(StrEnum):
    """What to do with a pod."""

    EVICT = "Evict"
    DELETE = "DeleteDirectly"
    WAIT = "Wait"
    GONE = "Gone"
    STUCK = "Stuck"
    LOST = "Lost"
    GIVE_UP = "GiveUp"


#: The drain has nothing more to do for the pod.
SETTLED = frozenset({Do.GONE, Do.STUCK, Do.LOST, Do.GIVE_UP})


@dataclass(frozen=True)
class Action:
    """The next step for one pod.

    :ivar at: of :attr:`Do.WAIT`: when to decide again, as epoch seconds, if nothing is observed before.
    :ivar why: a clause for the report, without the pod's name.
    """

    do: Do
    at: float = math.inf
    why: str = ""


@dataclass(frozen=True)
class PodView:
    """A pod as the decision needs it. All moments are epoch seconds of one clock.

    :ivar grace: seconds between its SIGTERM and its SIGKILL.
    :ivar since: when it was first seen in this state.
    :ivar ends_by: when the grace of a terminating pod is over.
    :ivar refusals: how often a request was refused, or got no answer.
    :ivar words: the server's, of the last refusal.
    :ivar next_try: before this moment it is not evicted again.
    :ivar next_deletion: before this moment it is not deleted again.
    """

    state: PodState
    grace: float
    since: float = 0.0
    ends_by: float | None = None
    refusals: int = 0
    words: str = ""
    next_try: float = 0.0
    next_deletion: float = 0.0


@dataclass(frozen=True)
class Limits:
    """How long a drain of a node goes on.

    :ivar deadline: when the node ends, with whatever runs on it; ``None`` if it stays as long as it is needed.
    :ivar margin: seconds that all pods should be gone before the deadline.
    :ivar evict_from: with a deadline: until then another controller evicts; a pod whose grace has to begin earlier is
        evicted earlier.
    :ivar evict_until: without a deadline: until when evictions are retried.
    :ivar then_delete: without a deadline: what is still there then is deleted, else left.
    :ivar end: without a deadline: when the drain ends in any case.
    :ivar watch: without a deadline: another controller drains the node; nothing is asked of a pod, and what becomes of
        it is noted.
    """

    deadline: float | None = None
    margin: float = 0.0
    evict_from: float = -math.inf
    evict_until: float = math.inf
    then_delete: bool = False
    end: float = math.inf
    watch: bool = False

    @property
    def last_moment(self) -> float:
        """When the drain of the node ends in any case."""
        return self.end if self.deadline is None else self.deadline

    def latest_start(self, grace: float) -> float:
        """The last moment at which a pod's grace period can begin and still fit."""
        return math.inf if self.deadline is None else self.deadline - self.margin - grace


def next_action(pod: PodView, now: float, limits: Limits) -> Action:
    """Decide from a pod, the clock and the limits.

    :raises ValueError: for an unknown state.
    """
    match pod.state:
        case PodState.GONE:
            return Action(Do.GONE)
        case PodState.NODE_GONE:
            return Action(Do.LOST, why="its node no longer exists")
        case PodState.STOPPED:
            return _stopped(pod, now, limits)
        case PodState.ACCEPTED | PodState.TERMINATING:
            return _ending(pod, now, limits)
        case PodState.FINISHED:
            return _finished(pod, now, limits)
        case PodState.RUNNING:
            return _running(pod, now, limits) if limits.deadline is not None else _patient(pod, now, limits)
    raise ValueError(f"unknown state {pod.state!r} of a pod")


def _stopped(pod: PodView, now: float, limits: Limits) -> Action:
    settled = min(pod.since + STUCK_AFTER_S, limits.last_moment)
    if now >= settled:
        return Action(Do.STUCK, why="its containers have ended, and its object stays")
    return Action(Do.WAIT, settled)


def _ending(pod: PodView, now: float, limits: Limits) -> Action:
    if now >= limits.last_moment:
        lost = Do.GIVE_UP if limits.deadline is None else Do.LOST
        return Action(lost, why=STILL_TERMINATING)
    late = limits.deadline is not None and pod.ends_by is not None and pod.ends_by > limits.deadline
    why = f"its grace of {pod.grace:.0f} s ends after the instance" if late else ""
    return Action(Do.WAIT, limits.last_moment, why)


def _finished(pod: PodView, now: float, limits: Limits) -> Action:
    """No budget protects it, and nothing is lost with it."""
    if limits.watch:
        return Action(Do.GIVE_UP, why="has finished")
    if now >= min(limits.last_moment, limits.evict_until):
        return Action(Do.GIVE_UP, why="has finished")
    if now >= pod.next_try:
        return Action(Do.EVICT)
    return Action(Do.WAIT, min(pod.next_try, limits.last_moment, limits.evict_until))


def _running(pod: PodView, now: float, limits: Limits) -> Action:
    """With a deadline. The Eviction API has the first word, whatever time is left."""
    deadline, latest = limits.last_moment, limits.latest_start(pod.grace)
    if now >= deadline:
        if pod.refusals == 0:
            # A notice that came late. Clocks differ, and the instance may run for a moment longer.
            return Action(Do.DELETE, why="the time was up when it was first seen")
        return Action(Do.LOST, why=_because(STILL_RAN, pod.words))
    begins = min(limits.evict_from, latest)
    if now < begins:
        return Action(Do.WAIT, begins)
    if pod.refusals and now >= latest:
        if now >= pod.next_deletion:
            return Action(Do.DELETE, why=_why_forced(pod, now, limits))
        return Action(Do.WAIT, min(pod.next_deletion, deadline))
    if now >= pod.next_try:
        return Action(Do.EVICT)
    return Action(Do.WAIT, min(pod.next_try, latest, deadline) if pod.refusals else min(pod.next_try, deadline))


def _patient(pod: PodView, now: float, limits: Limits) -> Action:
    """Without a deadline: as ``kubectl drain``, and then by the cluster file's policy."""
    if now >= limits.end or (now >= limits.evict_until and not limits.then_delete):
        return Action(Do.GIVE_UP, why=_because(STILL_RAN, pod.words))
    if limits.watch:
        return Action(Do.WAIT, limits.end)
    if now >= limits.evict_until:
        if now >= pod.next_deletion:
            return Action(Do.DELETE, why=_because("drain.timeout has passed", pod.words))
        return Action(Do.WAIT, min(pod.next_deletion, limits.end))
    if now >= pod.next_try:
        return Action(Do.EVICT)
    return Action(Do.WAIT, min(pod.next_try, limits.evict_until, limits.end))


def _why_forced(pod: PodView, now: float, limits: Limits) -> str:
    left = max(0.0, limits.last_moment - limits.margin - now)
    if pod.grace > left + 1.0:
        fits = f"its grace of {pod.grace:.0f} s does not fit in the {left:.0f} s that are left"
    else:
        fits = f"its grace of {pod.grace:.0f} s had to begin"
    return _because(fits, pod.words)


def _because(what: str, words: str) -> str:
    return f"{what}: {words}" if words else what


def urgency(deadline: float | None, grace: float, *, holds_gpu: bool) -> tuple[float, float, bool]:
    """A key that sorts what is due: the node that ends first, on it the pod that needs the most time, and of equal ones
    those with GPUs first."""
    return (math.inf if deadline is None else deadline, -grace, not holds_gpu)
