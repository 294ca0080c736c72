"""One look through a gate, and waiting for it: in the worker first, deferred only if it is not ready.

A deferral costs 2-3 s beyond its wait, a look milliseconds; so :func:`await_gate` looks before it defers. Operators end
their wait in a method that passes the trigger's event to :func:`conclude`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import ApiUnavailable, DeadlinePassed, GateBlind, GpuFleetError, TransientError
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.queries import AwsQuery, KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, unseen

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess

log = logging.getLogger(__name__)

#: XCom key under which a task that defers leaves what it waits for: ``{"gate", "reason", "message", "deadline"}``.
WAITING_FOR = "waiting_for"
API_UNAVAILABLE = "ApiUnavailable"


def observe_aws(access: ClusterAccess, query: AwsQuery) -> list[dict[str, Any]]:
    """The result of a polled AWS query; blocking."""
    from gpu_fleet.hooks.aws import aws_session

    aws = aws_session(access.aws_conn_id, access.region)
    try:
        return aws.paginate(query.service, query.operation, query.path, **query.params)
    except GpuFleetError as error:
        if error.reason in query.absent_codes:
            return []
        raise


def _observe(access: ClusterAccess, query: Query) -> list[dict[str, Any]]:
    if isinstance(query, AwsQuery):
        return observe_aws(access, query)
    try:
        return _list(access, query)
    except GpuFleetError as error:
        if query.watch:
            raise
        # The watched queries decide; without explanations there is only a poorer message. So it is in the triggerer.
        log.info("cannot list %s: %s", query.kind.plural, error)
        return []


def _list(access: ClusterAccess, query: KubeQuery) -> list[dict[str, Any]]:
    from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

    return (
        KubernetesHook(access)
        .client()
        .list(
            query.kind,
            query.namespace,
            name=query.name,
            label_selector=query.label_selector,
            field_selector=query.field_selector,
        )
    )


def verdict_of_error(error: GpuFleetError) -> Verdict:
    """What a gate says when it cannot look: transient trouble is Progressing, the rest fails it; both are blind.

    The error's message names verb, resource and the server's words.
    """
    if isinstance(error, TransientError):
        return unseen(API_UNAVAILABLE, error.message, permanent=False)
    return unseen(error.reason, error.message, permanent=True)


def with_clocks(args: Mapping[str, Any], now: float, started: float) -> dict[str, Any]:
    """A gate's arguments with the clocks that it judges by, see :class:`gpu_fleet.core.gates.gate.Gate`."""
    return {**args, "now": now, "started": started, "here": time.time()}


def judge(
    gate: str, snapshot: Mapping[str, list[dict[str, Any]]], args: Mapping[str, Any], *, now: float, started: float
) -> Verdict:
    """The gate's verdict on a complete snapshot.

    :param now: and ``started``: epoch seconds by the API server's clock.
    """
    return gate_named(gate).judge(snapshot, with_clocks(args, now, started))


def _ahead(access: ClusterAccess) -> float | None:
    """Seconds by which the API server's clock is ahead of ours; ``None`` if this process has not heard of it yet."""
    from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

    return KubernetesHook(access).client().ahead


def look(gate: str, args: Mapping[str, Any], access: ClusterAccess, *, started: float | None = None) -> Verdict:
    """One look, from the worker.

    :param args: the gate's JSON-able arguments.
    :param started: epoch seconds of the first look, by this machine's clock; now by default.
    :raises KeyError: for a gate that is not registered.
    """
    since = time.time() if started is None else started
    queries = gate_named(gate).queries(with_clocks(args, time.time(), since))
    try:
        snapshot = {query.key: _observe(access, query) for query in queries}
    except GpuFleetError as error:
        return verdict_of_error(error)
    # Not before the look: the answers have told what time it is there.
    ahead = _ahead(access) or 0.0
    return judge(gate, snapshot, args, now=time.time() + ahead, started=since + ahead)


def await_gate(
    operator: Any,
    context: Mapping[str, Any],
    gate: str,
    args: Mapping[str, Any],
    deadline_s: float,
    method_name: str = "execute_complete",
    *,
    access: ClusterAccess | None = None,
    deadline: float | None = None,
    started: float | None = None,
    kwargs: dict[str, Any] | None = None,
) -> Verdict:
    """Look; return the verdict if it is Ready, else defer until it is, fails, or the deadline passes.

    :param deadline_s: seconds from now; :param deadline: epoch seconds instead, for a wait that goes on. Deadlines are
        our own, and by our own clock.
    :param access: how to reach the cluster; ``operator.access()`` by default.
    :param method_name: called as ``method(context, event=..., **kwargs)``; it starts with :func:`conclude`.
    :raises GateFailed: the gate failed for a cause that may pass.
    :raises GateRefused: the gate failed for good; GateBlind: because it cannot look, for good or at the deadline.
    :raises DeadlinePassed: if ``deadline`` has passed already.
    """
    now = time.time()
    since = now if started is None else started
    until = now + deadline_s if deadline is None else deadline
    access = operator.access() if access is None else access
    verdict = look(gate, args, access, started=since)
    log.info("gate %s: %s %s: %s", gate, verdict.phase.value, verdict.reason, verdict.message)
    if verdict.ready:
        return verdict
    if verdict.failed:
        raise verdict.error()
    if time.time() >= until:
        raise deadline_error(gate, verdict)
    from gpu_fleet.triggers.gate import GateTrigger

    ahead = _ahead(access)
    # Airflow's API hides a trigger's arguments, and its log is far away: an XCom tells anybody who asks what a deferred
    # task waits for and why; later changes of the reason are in the task's log.
    context["ti"].xcom_push(
        WAITING_FOR, {"gate": gate, "reason": verdict.reason, "message": verdict.message, "deadline": until}
    )
    return operator.defer(  # type: ignore[no-any-return]  # defer() never returns
        trigger=GateTrigger(
            gate=gate,
            args=dict(args),
            access=access.to_json(),
            deadline=until,
            started=None if ahead is None else since + ahead,
            last=verdict.to_json(),
        ),
        method_name=method_name,
        kwargs=kwargs,
    )


def reconsider(
    error: GpuFleetError,
    gate: str,
    args: Mapping[str, Any],
    access: ClusterAccess,
    *,
    started: float | None = None,
) -> Verdict:
    """One fresh look from the worker before anything is undone because of a gate.

    The word that a task resumes with may be old (the triggerer was away until after the deadline) or that of somebody
    who could not see.

    :param error: how the wait ended.
    :returns: the verdict, if it is Ready after all.
    :raises ApiUnavailable: nobody can see at the moment.
    :raises GateBlind: nobody could see, or the triggerer could not (at its deadline, say) and nothing that is seen here
        fails the gate.
    :raises GpuFleetError: what stands: ``error``, or, where that was blind, what fails the gate here.
    """
    verdict = look(gate, args, access, started=started)
    log.info("gate %s, looked at again: %s %s: %s", gate, verdict.phase.value, verdict.reason, verdict.message)
    if verdict.ready:
        return verdict
    seen = f"{verdict.reason}: {verdict.message}"
    if verdict.blind:
        kind = GateBlind if verdict.failed else ApiUnavailable
        message = f"{error.message}; nothing is undone, because nobody can see whether anything is wrong: {seen}"
        raise kind(message, reason=verdict.reason) from error
    if isinstance(error, GateBlind):
        if verdict.failed:
            raise verdict.error() from error
        raise GateBlind(f"{error.message}; nothing is undone: from here it is {seen}", reason=error.reason) from error
    if isinstance(error, DeadlinePassed) and verdict.message not in error.message:
        raise DeadlinePassed(f"{error.message}; now {seen}") from error
    raise error


def deadline_error(gate: str, verdict: Verdict) -> DeadlinePassed | GateBlind:
    """How a wait ends whose deadline has passed; blind if nobody could see by then: an outage of the API says nothing
    about the objects, and nothing may be undone because of it."""
    message = f"still waiting for {gate} at its deadline: {verdict.reason}: {verdict.message}"
    if verdict.blind:
        return GateBlind(message, reason=verdict.reason)
    error = DeadlinePassed(message)
    error.waited_for = verdict.reason
    return error


def conclude(event: Mapping[str, Any]) -> Verdict:
    """The READY verdict in a gate trigger's event.

    :raises GateFailed: the gate failed for a cause that may pass.
    :raises GateRefused: the gate failed for good; GateBlind: because nobody could look, at the deadline or for good.
    :raises DeadlinePassed: naming what was still missing and why.
    """
    verdict = Verdict.from_json(event["verdict"])
    if event["type"] == "deadline":
        raise deadline_error(str(event["gate"]), verdict)
    if not verdict.ready:
        raise verdict.error()
    return verdict


__all__ = [
    "API_UNAVAILABLE",
    "WAITING_FOR",
    "await_gate",
    "conclude",
    "deadline_error",
    "judge",
    "look",
    "observe_aws",
    "reconsider",
    "verdict_of_error",
]
