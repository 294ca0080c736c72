"""What a pool tells the rest of Airflow: three assets, and which of them gets an event when.

``…/ready`` gets one only when the pool *becomes* ready: users' jobs are scheduled on it, and a revalidation must not
start them again. ``…/validated`` gets one at each proof. ``…/not-ready`` gets one at each failure, and when a pool that
was ready has no nodes any more.

The events themselves are the memory: a pool is ready if the newest of its events says so. Airflow stores an event in
the transaction that ends its task, so a killed task has neither lost nor doubled one, which a state kept elsewhere
would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpu_fleet.core.validation_report import Outcome

SCHEME = "gpu-fleet"
#: Bytes of an event's ``extra``; more belongs into the report that it points to.
MAX_EXTRA = 8192


class Topic(StrEnum):
    """The last part of an asset's URI."""

    READY = "ready"
    VALIDATED = "validated"
    NOT_READY = "not-ready"


class PoolState(StrEnum):
    """What the newest event says of a pool; ``UNKNOWN``: there is none."""

    UNKNOWN = "Unknown"
    READY = "Ready"
    NOT_READY = "NotReady"


#: Outcome of a pool that has no report at all, because something before validation failed.
NOT_VALIDATED = "NotValidated"
#: Outcome of a pool that was taken down on purpose.
TORN_DOWN = "TornDown"


@dataclass(frozen=True)
class Finding:
    """What came of a pool in this run.

    :ivar outcome: an :class:`Outcome`, or ``NotValidated`` or ``TornDown``.
    :ivar reason: CamelCase, :ivar message: a sentence.
    """

    outcome: str
    reason: str
    message: str


def uri(cluster: str, pool: str, topic: Topic) -> str:
    """``gpu-fleet://<cluster>/<pool>/<topic>``; cluster is the spec's name."""
    return f"{SCHEME}://{cluster}/{pool}/{topic}"


def alias(cluster: str, pool: str) -> str:
    """Name of the asset alias through which a pool's events are emitted."""
    return f"{SCHEME}://{cluster}/{pool}"


def state_after(newest: Mapping[Topic, float | None]) -> PoolState:
    """The pool's state by the time (epoch seconds) of each topic's newest event.

    A proof implies readiness: that keeps a pool ready whose one ``ready`` event was cleaned out of the database.
    """
    good = max((newest.get(Topic.READY) or 0.0, newest.get(Topic.VALIDATED) or 0.0))
    bad = newest.get(Topic.NOT_READY) or 0.0
    if good == bad == 0.0:
        return PoolState.UNKNOWN
    return PoolState.READY if good > bad else PoolState.NOT_READY


def topics_for(outcome: str, state: PoolState) -> tuple[Topic, ...]:
    """Which assets get an event. Total over every outcome and state; an unknown outcome raises.

    Busy says nothing about the GPUs: no event. Idle is no alarm, but a pool that was ready and has no nodes is not
    ready for the next job, and must be able to become ready again.
    """
    match outcome:
        case Outcome.PASSED:
            return (Topic.VALIDATED,) if state is PoolState.READY else (Topic.VALIDATED, Topic.READY)
        case Outcome.FAILED | Outcome.INCONCLUSIVE:
            return (Topic.NOT_READY,)
        case Outcome.BUSY | Outcome.SKIPPED:
            return ()
        case Outcome.IDLE:
            return (Topic.NOT_READY,) if state is PoolState.READY else ()
    if outcome == NOT_VALIDATED:
        return (Topic.NOT_READY,)
    if outcome == TORN_DOWN:
        return (Topic.NOT_READY,) if state is PoolState.READY else ()
    raise ValueError(f"unknown outcome {outcome!r}")


def finding_of(summaries: Sequence[Mapping[str, Any] | None], failure: Mapping[str, Any] | None) -> Finding:
    """What came of a pool, from the summaries of its probes (``None``: that probe gave none).

    :param failure: ``{"reason", "message"}`` of the wait for capacity, if that failed.
    """
    given = [summary for summary in summaries if summary is not None]
    for outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE):
        for summary in given:
            if summary.get("outcome") == outcome:
                first: Mapping[str, Any] = next(iter(summary.get("failures") or []), {})
                reason = str(first.get("reason", outcome))
                return Finding(outcome, reason, str(first.get("message", f"probe {summary.get('probe')} {outcome}")))
    if not given or len(given) < len(summaries):
        if failure:
            return Finding(NOT_VALIDATED, str(failure.get("reason")), str(failure.get("message")))
        return Finding(NOT_VALIDATED, NOT_VALIDATED, "validation did not take place: a task before it failed")
    outcomes = {str(summary.get("outcome")) for summary in given}
    for outcome in (Outcome.IDLE, Outcome.BUSY):
        if outcome in outcomes:
            words = "the pool has no nodes" if outcome is Outcome.IDLE else "all GPUs of the pool are in use"
            return Finding(outcome, str(outcome), words)
    probes = ", ".join(str(summary.get("probe")) for summary in given)
    return Finding(Outcome.PASSED, "Validated", f"passed: {probes}")


def valid_seconds(hold_minutes: int, consolidate_after_s: int | None, expire_after_s: int | None) -> int:
    """For how long the nodes will be there although no job uses them.

    :param consolidate_after_s: ``None``: Karpenter never removes idle nodes, which then last as long as nodes may.
    """
    idle = consolidate_after_s if consolidate_after_s is not None else expire_after_s
    return max(hold_minutes * 60, idle if idle is not None else 24 * 3600)


def bounded(extra: Mapping[str, Any], limit: int = MAX_EXTRA) -> dict[str, Any]:
    """The extra, without the node names, and then with a cut message, if it would be larger than ``limit`` bytes."""
    value = dict(extra)
    if size(value) > limit and isinstance(value.get("nodes"), list):
        value["nodeCount"] = len(value.pop("nodes"))
    if size(value) > limit:
        value["message"] = str(value.get("message", ""))[:500] + "…"
    return value


def size(extra: Mapping[str, Any]) -> int:
    """Bytes of the extra as JSON."""
    return len(json.dumps(extra, ensure_ascii=False).encode())
