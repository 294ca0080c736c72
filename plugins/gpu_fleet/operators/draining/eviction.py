"""Asks the API server to evict or delete one pod, and maps its refusals to what they mean for a drain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gpu_fleet.core.drain.answers import BY_BUDGETS, Answer, Word
from gpu_fleet.core.drain.plan import Blocked
from gpu_fleet.core.errors import ApiUnavailable, Conflict, Forbidden, GpuFleetError, NotFound, Throttled, Unauthorized
from gpu_fleet.core.kubernetes.kinds import POD, ObjectRef
from gpu_fleet.core.spec.operations import Drain
from gpu_fleet.hooks.kubernetes.errors import DISRUPTION_BUDGET, SEVERAL_BUDGETS

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

#: Seconds to wait for the answer to one request. A server that accepts connections and never answers must not occupy a
#: drain's threads until the nodes are gone.
ANSWER_WITHIN_S = 10.0


class PodId(Protocol):
    """What a request names."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...


def ask(
    kube: KubeClient, target: PodId, *, delete: bool, grace_seconds: int | None = None, dry_run: bool = False
) -> Answer:
    """Ask once for a pod's end, by its UID.

    :param delete: delete it, whatever its budgets say; else by the Eviction API.
    :param grace_seconds: ``None``: the pod's own.
    :param dry_run: only ask whether it would be evicted.
    """
    try:
        if delete:
            there = kube.delete(
                ObjectRef(POD, target.name, target.namespace),
                uid=target.uid,
                grace_seconds=grace_seconds,
                retry=False,
                read_timeout=ANSWER_WITHIN_S,
            )
            return Answer(Word.ACCEPTED if there else Word.GONE)
        kube.evict(
            target.namespace,
            target.name,
            uid=target.uid,
            grace_seconds=grace_seconds,
            dry_run=dry_run,
            read_timeout=ANSWER_WITHIN_S,
        )
    except GpuFleetError as error:
        return answer_of(error)
    return Answer(Word.ACCEPTED)


def answer_of(error: GpuFleetError) -> Answer:
    """What a failed request means for its pod."""
    match error:
        case NotFound():
            return Answer(Word.GONE)
        case Throttled(reason=reason):
            word = Word.BUDGET if reason == DISRUPTION_BUDGET else Word.OVERLOADED
            return Answer(word, error.message, error.retry_after)
        case Conflict(reason="NamespaceTerminating"):
            return Answer(Word.NAMESPACE_ENDS, error.message)
        case Conflict():
            return Answer(Word.CHANGED, error.message)
        case Forbidden() if "being terminated" in error.message:
            # As kubectl: a terminating namespace refuses evictions, and its own deletion deletes the pod.
            return Answer(Word.NAMESPACE_ENDS, error.message)
        case GpuFleetError(reason=reason) if reason == SEVERAL_BUDGETS:
            return Answer(Word.SEVERAL_BUDGETS, error.message)
        case ApiUnavailable() | Unauthorized():
            return Answer(Word.UNAVAILABLE, error.message)
        case _:
            return Answer(Word.DENIED, error.message, error=error)


def ask_to_go(
    kube: KubeClient,
    policy: Drain,
    target: PodId,
    *,
    force: bool = False,
    dry_run: bool = False,
    at_once: bool = False,
) -> tuple[Blocked | None, Answer]:
    """Ask the API to evict or delete one pod, as a drain of a teardown does.

    :param force: delete it, whatever its budgets say.
    :param dry_run: only ask whether it would be evicted.
    :param at_once: with a grace period of 0: the object is deleted although no kubelet has confirmed the pod's end.
    :returns: what blocks it (``None`` if the API accepts, or the pod is gone), and the answer.
    :raises GpuFleetError: this client may not do so, or the server refuses the request itself.
    """
    grace = 0 if at_once else None if policy.grace_period < 0 else policy.grace_period
    delete = force or policy.disable_eviction
    answer = ask(kube, target, delete=delete, grace_seconds=grace, dry_run=dry_run)
    match answer.word:
        case Word.ACCEPTED | Word.GONE:
            return None, answer
        case Word.CHANGED:
            # Another pod of the same name, or the eviction raced with a status update: the next look shows which.
            return Blocked(target.uid, f"{target}: changed in between", by_budget=False), answer
        case Word.NAMESPACE_ENDS:
            return Blocked(target.uid, f"{target}: its namespace is being terminated", by_budget=False), answer
        case Word.DENIED if answer.error is not None:
            if dry_run and not isinstance(answer.error, Forbidden):
                # An admission webhook without support for dry runs: only the eviction itself will show it.
                return None, answer
            raise answer.error
        case _:
            by_budget = answer.word in BY_BUDGETS
            return Blocked(target.uid, f"{target}: {answer.message}", by_budget=by_budget), answer
