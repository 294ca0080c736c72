"""Waiting for a gate: the worker looks first and defers only if the gate is not Ready.

A deferral costs 2-3 s beyond its wait, a look milliseconds. Operators and sensors begin a wait with :func:`await_gate`
and end it in a method that passes the trigger's event to :func:`conclude`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import ApiUnavailable, DeadlinePassed, GateBlind, GpuFleetError
from gpu_fleet.core.verdict import Verdict
from gpu_fleet.triggers.looking import clock_ahead, look

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess

log = logging.getLogger(__name__)

#: XCom key under which a task that defers leaves what it waits for: ``{"gate", "reason", "message", "deadline"}``.
WAITING_FOR = "waiting_for"


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

    :param deadline_s: seconds from now.
    :param deadline: epoch seconds instead, for a wait that continues. Deadlines follow this machine's clock.
    :param access: how to reach the cluster; ``operator.access()`` by default.
    :param method_name: called as ``method(context, event=..., **kwargs)``; it starts with :func:`conclude`.
    :raises GateFailed: the gate failed for a cause that may pass.
    :raises GateRefused: the gate failed for good.
    :raises GateBlind: the gate cannot look, for good or at the deadline.
    :raises DeadlinePassed: if ``deadline`` has passed already.
    """
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.triggers.gate import GateTrigger

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
    ahead = clock_ahead(access)
    # Airflow's API hides a trigger's arguments, and its log is hard to find: an XCom shows what a deferred task waits
    # for and why. Later changes of the reason are in the task's log.
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


def conclude(event: Mapping[str, Any]) -> Verdict:
    """The READY verdict in a gate trigger's event.

    :raises GateFailed: the gate failed for a cause that may pass.
    :raises GateRefused: the gate failed for good.
    :raises GateBlind: the gate could not look, at the deadline or for good.
    :raises DeadlinePassed: naming what was still missing and why.
    """
    verdict = Verdict.from_json(event["verdict"])
    if event["type"] == "deadline":
        raise deadline_error(str(event["gate"]), verdict)
    if not verdict.ready:
        raise verdict.error()
    return verdict


def deadline_error(gate: str, verdict: Verdict) -> DeadlinePassed | GateBlind:
    """How a wait ends whose deadline has passed. Blind if the gate could not look by then: an outage of the API says
    nothing about the objects, and nothing may be undone because of it."""
    message = f"still waiting for {gate} at its deadline: {verdict.reason}: {verdict.message}"
    if verdict.blind:
        return GateBlind(message, reason=verdict.reason)
    error = DeadlinePassed(message)
    error.waited_for = verdict.reason
    return error


def reconsider(
    error: GpuFleetError,
    gate: str,
    args: Mapping[str, Any],
    access: ClusterAccess,
    *,
    started: float | None = None,
) -> Verdict:
    """One fresh look from the worker before anything is undone because of a gate.

    The event that a task resumes with may be old (the triggerer was away until after the deadline), or its sender may
    not have been able to look.

    :param error: how the wait ended.
    :returns: the verdict, if it is Ready after all.
    :raises ApiUnavailable: the worker cannot look at the moment.
    :raises GateBlind: the worker cannot look for good; or the triggerer could not (at its deadline, for example) and
        nothing that the worker sees fails the gate.
    :raises GpuFleetError: ``error``, if the look confirms it; or what fails the gate now, if ``error`` was blind.
    """
    verdict = look(gate, args, access, started=started)
    log.info("gate %s, looked at again: %s %s: %s", gate, verdict.phase.value, verdict.reason, verdict.message)
    if verdict.ready:
        return verdict
    seen = f"{verdict.reason}: {verdict.message}"
    if verdict.blind:
        kind = GateBlind if verdict.failed else ApiUnavailable
        message = f"{error.message}; nothing is undone, because whether anything is wrong cannot be seen: {seen}"
        raise kind(message, reason=verdict.reason) from error
    if isinstance(error, GateBlind):
        if verdict.failed:
            raise verdict.error() from error
        raise GateBlind(f"{error.message}; nothing is undone: from here it is {seen}", reason=error.reason) from error
    if isinstance(error, DeadlinePassed) and verdict.message not in error.message:
        raise DeadlinePassed(f"{error.message}; now {seen}") from error
    raise error


__all__ = ["WAITING_FOR", "await_gate", "conclude", "deadline_error", "reconsider"]
