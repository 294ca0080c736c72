"""What a pool publishes to the rest of Airflow: three assets, and which of them gets an event when.

``…/ready`` gets one only when the pool *becomes* ready: users' jobs are scheduled on it, and a revalidation must not
start them again. ``…/validated`` gets one at each proof. ``…/not-ready`` gets one at each failure, and when a pool that
was ready has no nodes any more. A pool that is not ready is proven only with the nodes that made it so: each of them
has passed, is gone, or is out of service.

The events themselves are the state: a pool is ready if the newest of its events says so. Airflow stores an event in
the transaction that ends its task, so a killed task neither loses nor doubles one, as it could with state kept
elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from gpu_fleet.core.probes.plan import MEASURING
from gpu_fleet.core.validation.report import NO_NODES, Outcome, PoolReport

SCHEME = "gpu-fleet"
#: Bytes of an event's ``extra``; more belongs in the report that it points to.
MAX_EXTRA = 8192


class Topic(StrEnum):
    """The last part of an asset's URI."""

    READY = "ready"
    VALIDATED = "validated"
    NOT_READY = "not-ready"


class PoolState(StrEnum):
    """What the newest event says about a pool; ``UNKNOWN``: there is no event."""

    UNKNOWN = "Unknown"
    READY = "Ready"
    NOT_READY = "NotReady"


#: Reason of a pool that passed on all nodes except those that this run took out of service.
VALIDATED_WITHOUT = "ValidatedWithout"
#: Reason of a pool that passed, but stays not ready because of nodes that failed before and were not proven this time.
NODES_UNPROVEN = "NodesUnproven"
#: Outcome of a pool that has no report at all, because something before validation failed.
NOT_VALIDATED = "NotValidated"
#: Outcome of a pool that was torn down on purpose.
TORN_DOWN = "TornDown"


@dataclass(frozen=True)
class Finding:
    """What came of a pool in this run.

    :ivar outcome: an :class:`Outcome`, or ``NotValidated`` or ``TornDown``.
    :ivar reason: CamelCase.
    :ivar message: a sentence.
    :ivar without: nodes that failed, were taken out of service, and no longer count.
    """

    outcome: str
    reason: str
    message: str
    without: tuple[str, ...] = ()


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


def topics_for(
    outcome: str,
    state: PoolState,
    *,
    one_node: bool = False,
    unproven: Collection[str] = (),
    looks_only: bool = False,
) -> tuple[Topic, ...]:
    """Which assets get an event. Total over every outcome and state; an unknown outcome raises.

    :param one_node: only one node of the pool was tested, on request. Its pass says nothing about the others, so it
        cannot make the pool ready.
    :param unproven: nodes in service for which the pool is not ready, and which have not passed since; see
        :func:`still_blamed`. That other nodes passed says nothing about them.
    :param looks_only: the run changes nothing that works (a revalidation). That it could not test says nothing about
        the GPUs: declared not ready, the pool would become ready again with the next test, and start users' jobs again.

    Busy says nothing about the GPUs: no event. Idle is no alarm, but a pool that was ready and has no nodes is not
    ready for the next job, and must be able to become ready again.
    """
    match outcome:
        case Outcome.PASSED:
            if state is PoolState.READY:
                return (Topic.VALIDATED,)
            return () if one_node or unproven else (Topic.VALIDATED, Topic.READY)
        case Outcome.FAILED | Outcome.INCONCLUSIVE:
            return (Topic.NOT_READY,)
        case Outcome.BUSY | Outcome.SKIPPED:
            return ()
        case Outcome.IDLE:
            return (Topic.NOT_READY,) if state is PoolState.READY and not one_node else ()
    if outcome == NOT_VALIDATED:
        return () if looks_only else (Topic.NOT_READY,)
    if outcome == TORN_DOWN:
        return (Topic.NOT_READY,) if state is PoolState.READY else ()
    raise ValueError(f"unknown outcome {outcome!r}")


def finding_of(summaries: Sequence[Mapping[str, Any] | None], failure: Mapping[str, Any] | None) -> Finding:
    """What came of a pool, from the summaries of its probes (``None``: that probe left none).

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
        words = "is incomplete: a probe left no report" if given else "did not take place: a task before it failed"
        return Finding(NOT_VALIDATED, NOT_VALIDATED, f"validation {words}")
    proofs = [summary for summary in given if summary.get("probe") not in MEASURING] or given
    idle = next((summary for summary in given if summary.get("outcome") == Outcome.IDLE), None)
    if idle is not None:
        return Finding(Outcome.IDLE, str(Outcome.IDLE), str(idle.get("idle") or NO_NODES))
    if any(summary.get("outcome") == Outcome.BUSY for summary in proofs):
        return Finding(Outcome.BUSY, str(Outcome.BUSY), "all GPUs of the pool are in use")
    busy = [str(summary.get("probe")) for summary in given if summary.get("outcome") == Outcome.BUSY]
    probes = ", ".join(str(summary.get("probe")) for summary in given if summary.get("outcome") == Outcome.PASSED)
    apart = [str(summary.get("probe")) for summary in given if summary.get("outcome") == Outcome.SKIPPED]
    more = f"; no free GPU for: {', '.join(busy)}" if busy else ""
    more += f"; not applicable: {', '.join(apart)}" if apart else ""
    return Finding(Outcome.PASSED, "Validated", f"passed: {probes}{more}")


def finding_without(finding: Finding, reports: Sequence[PoolReport], remediation: Mapping[str, Any] | None) -> Finding:
    """The finding of a pool whose failed nodes were all taken out of service: it passed without them.

    :param reports: of the pool's probes in this run.
    :param remediation: what came of the failed nodes, the XCom of that name; ``None``: nothing was done.
    :returns: ``ValidatedWithout`` if at least one other node passed and nothing else is wrong, else ``finding``.
    """
    if finding.outcome not in (Outcome.FAILED, Outcome.INCONCLUSIVE) or not remediation:
        return finding
    gone = {str(name) for key in ("quarantined", "replaced") for name in remediation.get(key) or []}
    nodes = outcomes_of_nodes(reports)
    bad = {name for name, (outcome, _) in nodes.items() if outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE)}
    passed = sorted(name for name, (outcome, _) in nodes.items() if outcome is Outcome.PASSED)
    pool_wide = [
        check
        for report in reports
        for check in report.pool_checks
        if check.outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE)
    ]
    if not bad or not bad <= gone or not passed or pool_wide:
        return finding
    probes = ", ".join(r.probe for r in reports if any(node.outcome is Outcome.PASSED for node in r.nodes))
    return Finding(
        Outcome.PASSED,
        VALIDATED_WITHOUT,
        f"{len(passed)} node(s) passed ({probes}); taken out of service: {_listed(sorted(bad))}; "
        f"first cause: {finding.reason}: {finding.message}",
        tuple(sorted(bad)),
    )


def still_blamed(
    blamed: Iterable[str], reports: Sequence[PoolReport], remediation: Mapping[str, Any] | None
) -> list[str]:
    """Those of the nodes that made the pool not ready which this run has neither proven nor taken out of service.

    :param blamed: nodes in service that failed since the pool was last proven.
    """
    passed = {name for name, (outcome, _) in outcomes_of_nodes(reports).items() if outcome is Outcome.PASSED}
    gone = {str(name) for key in ("quarantined", "replaced") for name in (remediation or {}).get(key) or []}
    return sorted(set(blamed) - passed - gone)


def finding_until(finding: Finding, unproven: Sequence[str]) -> Finding:
    """The finding of a pool that passed, and does not become ready until these nodes have passed, too."""
    if finding.outcome != Outcome.PASSED or not unproven:
        return finding
    return replace(
        finding,
        reason=NODES_UNPROVEN,
        message=f"{finding.message}; but not ready: failed before, and not passed since: {_listed(unproven)}; "
        "every run tests them; free, cordon or delete them",
    )


def finding_told(finding: Finding, *more: str) -> Finding:
    """The finding of a pool that passed, with what else is to be said of how its capacity came."""
    told = "; ".join(text for text in more if text)
    if finding.outcome != Outcome.PASSED or not told:
        return finding
    return replace(finding, message=f"{finding.message}; {told}")


def outcomes_of_nodes(reports: Sequence[PoolReport]) -> dict[str, tuple[Outcome, str]]:
    """Node -> its most decisive outcome over all probes, with the reason if it did not pass; sorted by name."""
    found: dict[str, tuple[int, tuple[Outcome, str]]] = {}
    for report in reports:
        for node in report.nodes:
            cause = node.cause
            mine = (node.outcome, cause.reason if cause is not None else "")
            weight = _WEIGHT[node.outcome]
            if node.outcome is Outcome.BUSY and report.probe in MEASURING:  # the proof before it counts
                weight = _WEIGHT[Outcome.SKIPPED]
            if node.node not in found or weight < found[node.node][0]:
                found[node.node] = (weight, mine)
    return {name: mine for name, (_, mine) in sorted(found.items())}


#: What a node's probes disagree on is decided by the lowest.
_WEIGHT = {
    Outcome.FAILED: 0,
    Outcome.INCONCLUSIVE: 1,
    Outcome.BUSY: 2,
    Outcome.PASSED: 3,
    Outcome.SKIPPED: 4,
    Outcome.IDLE: 5,
}


def node_verdicts(nodes: Sequence[str], reports: Sequence[PoolReport]) -> dict[str, str]:
    """Node -> ``Passed`` or ``Failed: SharerStarved``, compact enough for an event; what is bad comes first.

    :param nodes: all that were to be validated; one without a report is ``NotProbed``.
    """
    outcomes = outcomes_of_nodes(reports)
    found = {
        name: f"{outcome}: {reason}" if reason and outcome is not Outcome.BUSY else str(outcome)
        for name, (outcome, reason) in outcomes.items()
    }
    every = {**dict.fromkeys(nodes, "NotProbed"), **found}
    return dict(sorted(every.items(), key=lambda item: (item[1] == Outcome.PASSED, item[0])))


def blamed_nodes(verdicts: Iterable[object]) -> set[str]:
    """The nodes whose last proof is that they failed or were in doubt.

    :param verdicts: the ``nodes`` of a pool's events (see :func:`node_verdicts`), newest first. A node's newest
        verdict counts; a node that was busy, or not tested, is still what it was before.
    """
    decided: dict[str, bool] = {}
    for of_nodes in verdicts:
        for node, verdict in of_nodes.items() if isinstance(of_nodes, Mapping) else ():
            outcome = str(verdict).partition(":")[0]
            if outcome in _PROOFS:
                decided.setdefault(str(node), outcome != Outcome.PASSED)
    return {node for node, bad in decided.items() if bad}


#: Verdicts that decide about a node.
_PROOFS = frozenset({Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE})


def state_now(was: PoolState, topics: Sequence[Topic]) -> PoolState:
    """The pool's state after these events."""
    if Topic.NOT_READY in topics:
        return PoolState.NOT_READY
    return PoolState.READY if topics else was


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def valid_seconds(hold_minutes: int, consolidate_after_s: int | None, expire_after_s: int | None) -> int:
    """For how many seconds the nodes will exist although no job uses them.

    :param consolidate_after_s: ``None``: Karpenter never removes idle nodes, which then exist until they expire.
    """
    idle = consolidate_after_s if consolidate_after_s is not None else expire_after_s
    return max(hold_minutes * 60, idle if idle is not None else 24 * 3600)


def bounded(extra: Mapping[str, Any], limit: int = MAX_EXTRA) -> dict[str, Any]:
    """The extra in at most ``limit`` bytes: it leaves out nodes, those that passed first, and says how many.

    :param extra: ``nodes`` is as :func:`node_verdicts` gives it. What was left out is counted in ``cut``, for example
        ``{"nodes": {"Passed": 120}}``; the report has it all.
    """
    value = dict(extra)
    nodes = dict(value.get("nodes") or {})
    cut: dict[str, int] = {}
    while size(value) > limit and nodes:
        # A tenth at a time: exact enough, without computing the size a thousand times.
        for name in list(nodes)[-max(1, len(nodes) // 10) :]:
            verdict = nodes.pop(name)
            cut[verdict] = cut.get(verdict, 0) + 1
        value["nodes"], value["cut"] = nodes, {"nodes": dict(sorted(cut.items()))}
    if size(value) > limit:
        value["message"] = str(value.get("message", ""))[:500] + "…"
    return value


def size(extra: Mapping[str, Any]) -> int:
    """Bytes of the extra as JSON, as Airflow stores it: every character beyond ASCII is escaped."""
    return len(json.dumps(extra))
