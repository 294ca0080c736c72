"""The part of a run's report about interrupted nodes: what happened to each node and pod, and where the pods went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu_fleet.core.interruptions.report import InterruptionReport
from gpu_fleet.core.markup.blocks import (
    Badge,
    Block,
    Fold,
    Heading,
    Inline,
    Items,
    Note,
    Paragraph,
    Table,
    Text,
    clean,
    code,
    moment,
    text,
)

#: Pods that are listed one by one before the rest is folded; what is bad comes first.
LISTED = 40
#: What a person looks for first.
_GRAVITY = ("Lost", "StuckTerminating", "Forced", "Waiting", "Asked", "Terminating", "Left")


def interruption_blocks(report: InterruptionReport, placement: Mapping[str, Any] | None) -> Iterator[Block]:
    """The document.

    :param placement: the finding of the gate ``pods_placed``: ``{"phase", "message", "data": {"workloads"}}``.
    """
    if report.nodes:
        yield Heading(2, "Nodes")
        yield from _nodes(report)
    if report.pods:
        yield from _pods(report)
    if placement is not None:
        yield from _placement(placement)
    if report.gpu_seconds:
        usd = ", at an unknown price" if report.usd is None else f", {report.usd:.2f} USD"
        hours = report.gpu_seconds / 3600
        yield Paragraph(
            (
                text(
                    f"Lost at most: {hours:.2f} GPU hours{usd}. That is what the pods had computed that ended before "
                    f"they had finished; what they had saved is not lost. {report.prices}".rstrip()
                ),
            )
        )
    if report.block is not None:
        yield from _block(report.block)
    yield from _others(report)


def _block(block: Mapping[str, Any]) -> Iterator[Block]:
    """The instance hours of a Capacity Block, which are paid in advance."""
    yield Heading(2, "Paid and unused")
    yield Paragraph((text(block.get("words", "")),))
    rows = (
        ("paid for", "paidHours", ""),
        ("not used", "unusedHours", "the sum of the next three"),
        ("before nodes joined", "lateHours", "counted from the start of the block"),
        ("after the nodes were empty", "earlyHours", "EC2 takes the last 30 minutes (60 of UltraServers) in any case"),
        ("without a node", "idleHours", "of instances on which no node was at the end; earlier ones are not known"),
    )
    shown = tuple((text(name), text(f"{float(block.get(key) or 0):.2f}"), text(why)) for name, key, why in rows)
    yield Table("Instance hours of the Capacity Block", ("instance hours", "hours", ""), shown, frozenset({1}))


def _nodes(report: InterruptionReport) -> Iterator[Block]:
    rows: list[tuple[Inline, ...]] = [
        (
            code(node.get("node", "")),
            text(node.get("pool", "")),
            code(node.get("kind", "")),
            text(_at(node.get("at"))),
            text(_at(node.get("deadline"))),
            Badge(clean(node.get("outcome", ""))),
            text(_at(node.get("emptiedAt"))),
        )
        for node in report.nodes
    ]
    head = ("node", "pool", "cause", "noticed (UTC)", "ends (UTC)", "outcome", "empty (UTC)")
    yield Table(f"{report.deed.capitalize()} nodes", head, tuple(rows))
    told: list[tuple[Inline, ...]] = []
    for node in report.nodes:
        how = [str(node.get(key) or "") for key in ("why", "removed")]
        told.append((code(node.get("instance", "")), Text(": "), text("; ".join(filter(None, how)) or "–")))
    yield Items(tuple(told))


def _pods(report: InterruptionReport) -> Iterator[Block]:
    yield Heading(2, "Pods")
    ordered = sorted(report.pods, key=lambda pod: (_rank(pod), str(pod.get("node")), str(pod.get("name"))))
    yield from _pod_table(ordered[:LISTED], report.deed)
    if len(ordered) > LISTED:
        yield Fold(f"{len(ordered) - LISTED} more pods", tuple(_pod_table(ordered[LISTED:], report.deed)))


def _rank(pod: Mapping[str, Any]) -> int:
    outcome = str(pod.get("outcome"))
    return _GRAVITY.index(outcome) if outcome in _GRAVITY else len(_GRAVITY)


def _pod_table(pods: Sequence[Mapping[str, Any]], deed: str) -> Iterator[Block]:
    """The pods, and below them in words what there is to say of some."""
    rows: list[tuple[Inline, ...]] = []
    told: list[tuple[Inline, ...]] = []
    for pod in pods:
        name = f"{pod.get('namespace')}/{pod.get('name')}"
        rows.append(
            (
                code(name),
                code(str(pod.get("node", "")).partition(".")[0]),
                text(pod.get("gpus") or "–"),
                Badge(clean(pod.get("outcome", ""))),
                code(pod.get("rule", "")),
                text(_at(pod.get("asked_at"))),
                text(_at(pod.get("gone_at"))),
            )
        )
        why = [str(pod.get("reason") or ""), str(pod.get("note") or "")]
        if pod.get("refused") and str(pod.get("words")) not in why[0]:
            why.append(f"refused {pod['refused']} times, at last: {pod.get('words')}")
        if words := "; ".join(filter(None, why)):
            told.append((code(name), Text(": "), text(words)))
    head = ("pod", "node", "GPUs", "outcome", "rule", "asked to go (UTC)", "gone (UTC)")
    yield Table(f"Pods on the {deed} nodes", head, tuple(rows), frozenset({2}))
    if told:
        yield Items(tuple(told))


def _placement(placement: Mapping[str, Any]) -> Iterator[Block]:
    data = placement.get("data")
    workloads = data.get("workloads") if isinstance(data, Mapping) else None
    yield Heading(2, "Where the pods went", clean(placement.get("phase", "")))
    yield Paragraph((text(placement.get("message", "")),))
    if not isinstance(workloads, list):
        return
    rows: list[tuple[Inline, ...]] = []
    for each in workloads:
        running = [f"{pod.get('pod')} on {pod.get('node')}" for pod in each.get("running") or []]
        rows.append(
            (
                code(each.get("workload", "")),
                text(each.get("evicted", "")),
                text(", ".join(running) or "–"),
                text(", ".join(map(str, each.get("pending") or [])) or "–"),
                text(each.get("notWanted", 0)),
            )
        )
    head = ("workload", "evicted", "runs again", "pending", "no longer wanted")
    yield Table("Successors of the evicted pods", head, tuple(rows), frozenset({1, 4}))


def _others(report: InterruptionReport) -> Iterator[Block]:
    lines: list[tuple[Inline, ...]] = [
        *((code(node), text(f"is drained by run {run}")) for node, run in sorted(report.elsewhere.items())),
        *((code(instance), text(why)) for instance, why in sorted(report.unknown.items())),
        *((text(f"{count} notices passed over: {cause}"),) for cause, count in sorted(report.skipped.items())),
    ]
    if lines:
        yield Heading(2, "Not acted on here")
        yield Items(tuple(lines))
    if report.problems:
        yield Note("; ".join(map(clean, report.problems)))


def _at(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return "–"
    return moment(float(seconds)).partition(" ")[2] or "–"
