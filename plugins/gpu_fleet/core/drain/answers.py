"""What an API server answers to the request that a pod shall go, and when it is asked again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpu_fleet.core.errors import GpuFleetError

#: Seconds before the first repetition of a request that was refused without a ``Retry-After``.
FIRST_PAUSE_S = 1.0
#: Longest pause between two requests for the same pod: kubectl's (kubernetes/kubectl v0.36 pkg/drain/drain.go waits 5 s
#: after each 429).
LONGEST_PAUSE_S = 5.0
#: Part of a pause that is random, so that pods that were refused together are not asked for together again.
JITTER = 0.25
#: Longest pause of a whole drain because the server has too much to do. Priority and fairness ask for one second
#: (kubernetes v1.35 staging/src/k8s.io/apiserver/pkg/util/flowcontrol); a proxy may ask for minutes, after which a
#: drain with a deadline would have nothing left to do.
LONGEST_SLOWDOWN_S = 10.0


class Word(StrEnum):
    """The kinds of answers."""

    ACCEPTED = "Accepted"
    GONE = "Gone"  # 404: the pod was gone before
    BUDGET = "Budget"  # 429 of a disruption budget
    SEVERAL_BUDGETS = "SeveralBudgets"  # 500: two budgets select the pod
    OVERLOADED = "Overloaded"  # 429 without a budget: the server has too much to do
    CHANGED = "Changed"  # 409: another pod has the name, or the request raced with another one
    NAMESPACE_ENDS = "NamespaceEnds"  # 403: its namespace is being terminated, and that deletes the pod
    UNAVAILABLE = "Unavailable"  # no useful answer: whether the request was executed is unknown
    DENIED = "Denied"  # a missing permission, an admission rule


#: The pod needs nothing more than to be watched.
DONE = frozenset({Word.ACCEPTED, Word.GONE})
#: PodDisruptionBudgets are the cause.
BY_BUDGETS = frozenset({Word.BUDGET, Word.SEVERAL_BUDGETS})


@dataclass(frozen=True)
class Answer:
    """One answer.

    :ivar message: the server's words; empty for those of :data:`DONE`.
    :ivar retry_after: seconds of ``Retry-After``.
    :ivar error: what a caller raises that cannot live with it; only of :attr:`Word.DENIED`.
    """

    word: Word
    message: str = ""
    retry_after: float | None = None
    error: GpuFleetError | None = None


def pause_s(refusals: int, retry_after: float | None, chance: float) -> float:
    """Seconds until a refused pod is asked for again.

    :param refusals: how often it was refused, this time included.
    :param retry_after: what the server asked for; it is obeyed, however long.
    :param chance: between 0 and 1, random.
    """
    if retry_after is not None and retry_after > 0:
        return retry_after * (1.0 + JITTER * chance)
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(refusals - 1, 10)) * (1.0 + JITTER * chance)


def slowdown_s(answer: Answer) -> float:
    """Seconds for which nothing at all is asked of the server after this answer; mostly none."""
    if answer.word is not Word.OVERLOADED:
        return 0.0
    return min(LONGEST_SLOWDOWN_S, FIRST_PAUSE_S if answer.retry_after is None else answer.retry_after)
