"""A run's report as a document: the verdict first, then per pool what failed, why and what to do, then the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_fleet.core.links import history_path, report_path, run_path
from gpu_fleet.core.markup.blocks import (
    Badge,
    Block,
    Fold,
    Heading,
    Inline,
    Items,
    Link,
    Note,
    Paragraph,
    Table,
    Text,
    clean,
    code,
    instant,
    moment,
    text,
)
from gpu_fleet.core.pools.assets import VALIDATED_WITHOUT, outcomes_of_nodes
from gpu_fleet.core.pools.history import VerdictAt
from gpu_fleet.core.reports.figures import figure, figures
from gpu_fleet.core.reports.interruption import interruption_blocks
from gpu_fleet.core.reports.ladder import ladder_blocks
from gpu_fleet.core.reports.model import PoolSection, RunReport
from gpu_fleet.core.reports.pulls import pulls_of
from gpu_fleet.core.reports.remedies import remedy
from gpu_fleet.core.reports.timing import timing
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport

#: Failed nodes that are listed one by one; a large pool fails for one reason, and the folded table lists all.
LISTED = 20

_TROUBLE = (Outcome.FAILED, Outcome.INCONCLUSIVE)


def document(run: RunReport) -> list[Block]:
    """The whole report."""
    blocks: list[Block] = [
        Heading(1, f"{_subject(run)} of {clean(run.cluster)}", str(run.outcome)),
        Paragraph((text(run.headline()),), lead=True),
        Paragraph(_about(run)),
    ]
    if run.interruption is not None:
        blocks += interruption_blocks(run.interruption, run.placement)
    if run.pools:
        blocks.append(_overview(run))
    elif not run.skipped and run.interruption is None:
        blocks.append(Paragraph((text("This run has no report of any pool yet."),)))
    if run.unreadable:
        listed = ", ".join(clean(name) for name in run.unreadable)
        blocks.append(Note(f"Not shown, because Airflow's database does not hold these results as reports: {listed}."))
    if run.drift:
        blocks += _drift(run)
    if run.unread:
        blocks += _unread(run)
    for pool in sorted(run.pools, key=lambda pool: (not pool.bad, pool.name)):
        blocks += _pool(run, pool)
    return blocks


def _subject(run: RunReport) -> str:
    return "GPU validation" if run.interruption is None else f"{run.interruption.deed.capitalize()} GPU nodes"


def _about(run: RunReport) -> tuple[Inline, ...]:
    parts: list[Inline] = [
        Text("Run "),
        Link(f"{clean(run.dag_id)} / {clean(run.run_id)}", run.root + run_path(run.dag_id, run.run_id)),
        Text(f": {clean(run.state)}"),
    ]
    if run.started:
        parts.append(Text(f"; started {instant(run.started)}" + (f", ended {instant(run.ended)}" if run.ended else "")))
    if run.drift is not None and not run.drift and not run.unread:
        parts.append(Text("; manifests and releases match the spec"))
    return (*parts, Text("."))


def _overview(run: RunReport) -> Table:
    rows: list[tuple[Inline, ...]] = []
    for pool in run.pools:
        change = str(pool.now) if pool.now is not None else "not published"
        if pool.was is not None and pool.was is not pool.now:
            change = f"{pool.was} → {change}"
        rows.append(
            (
                code(pool.name),
                Badge(clean(pool.finding.outcome)),
                code(pool.finding.reason),
                text(_counts(pool)),
                text(change),
                text(instant(pool.valid_until)),
            )
        )
    return Table("Pools", ("pool", "verdict", "reason", "nodes", "state", "valid until"), tuple(rows))


def _counts(pool: PoolSection) -> str:
    found = outcomes_of_nodes(pool.reports)
    counts = Counter(outcome for outcome, _ in found.values())
    words = ", ".join(f"{count} {str(outcome).lower()}" for outcome, count in sorted(counts.items()))
    return words or "none"


def _drift(run: RunReport) -> Iterator[Block]:
    yield Heading(2, "Drift from the spec", "Drifted")
    yield Table(
        "Differences between the spec and the cluster",
        ("change", "object", "field", "wanted", "found"),
        tuple(
            (
                text(item.get("kind", "")),
                code(item.get("object", "")),
                code(item.get("field") or "–"),
                code(figure(item.get("wanted"))),
                code(figure(item.get("found")) + (f" (by {clean(item['by'])})" if item.get("by") else "")),
            )
            for item in run.drift or ()
        ),
    )
    yield Paragraph((text(f"What to do: {remedy('Drifted')}"),))


def _unread(run: RunReport) -> Iterator[Block]:
    yield Heading(2, "Not compared with the spec", "Inconclusive")
    rows = (
        (code(each.get("object", "")), code(each.get("reason", "")), text(each.get("message", "")))
        for each in run.unread
    )
    yield Table("Objects that could not be read", ("object", "reason", "message"), tuple(rows))
    yield Paragraph((text(f"What to do: {remedy('DriftUnknown')}"),))


def _pool(run: RunReport, pool: PoolSection) -> Iterator[Block]:
    yield Heading(2, f"Pool {clean(pool.name)}", clean(pool.finding.outcome))
    yield Paragraph((code(pool.finding.reason), Text(": "), text(pool.finding.message or "no message")))
    yield from _failures(pool)
    if not pool.reports and pool.bad:
        yield Paragraph((text(f"What to do: {remedy(pool.finding.reason)}"),))
    if pool.remediation is not None:
        yield from _remediation(pool)
    if pool.admission is not None:
        yield from _admission(pool.admission)
    if pool.drifted:
        yield from _drifted_nodes(pool)
    yield from _older_nodes(pool)
    if pool.stages is not None:
        yield from timing(pool.stages)
    yield from ladder_blocks(pool.ladder, pool.lower_rungs)
    yield from pulls_of(pool)
    for note in dict.fromkeys(note for report in pool.reports for note in report.notes):
        yield Note(clean(note))
    for report in pool.reports:
        yield from _probe(report)
    yield from _history(run, pool)


def _failures(pool: PoolSection) -> Iterator[Block]:
    """What failed or is in doubt, node by node, with its remedy."""
    found: list[tuple[PoolReport, str, str, Check]] = []
    for report in pool.reports:
        for node in report.nodes:
            if node.outcome in _TROUBLE and node.cause is not None:
                found.append((report, node.node, node.instance.get("type", ""), node.cause))
        found += [(report, "", "", check) for check in report.pool_checks if check.outcome in _TROUBLE]
    if not found:
        return
    yield Heading(3, "What failed")
    yield Table(
        "Failed nodes and checks",
        ("node", "instance type", "probe", "check", "reason", "what was found"),
        tuple(
            (
                code(node) if node else text("whole pool"),
                text(instance or "–"),
                code(report.probe),
                code(check.name),
                code(check.reason),
                text(check.message),
            )
            for report, node, instance, check in found[:LISTED]
        ),
    )
    if len(found) > LISTED:
        yield Paragraph((text(f"and {len(found) - LISTED} more; the checks of every node are listed below."),))
    reasons = dict.fromkeys(check.reason for _, _, _, check in found)
    yield Heading(3, "What to do")
    yield Items(tuple((code(reason), Text(": "), text(remedy(reason))) for reason in reasons))


def _older_nodes(pool: PoolSection) -> Iterator[Block]:
    if not pool.older:
        return
    yield Heading(3, "Nodes of an older template")
    rows = tuple((code(name), text("; ".join(why))) for name, why in list(pool.older.items())[:LISTED])
    yield Table("Nodes of an older template, not tested", ("node", "launched with -> wanted now"), rows)
    if len(pool.older) > LISTED:
        yield Paragraph((text(f"and {len(pool.older) - LISTED} more"),))
    yield Note("These nodes keep serving their pods, and do not count as capacity of the pool.")


def _remediation(pool: PoolSection) -> Iterator[Block]:
    done = pool.remediation or {}
    rows: list[tuple[Inline, ...]] = []
    for key, words in (("quarantined", "quarantined"), ("replaced", "replaced"), ("released", "released")):
        rows += [(code(name), text(words), text("")) for name in done.get(key) or []]
    for item in done.get("left") or []:
        entry = item if isinstance(item, dict) else {"node": item}
        rows.append((code(entry.get("node", "")), text("left as it is"), code(entry.get("reason", ""))))
    if not rows:
        return
    policy = clean(done.get("policy", ""))
    yield Heading(3, "What was done")
    yield Table(f"Nodes changed or left under policy {policy or 'none'}", ("node", "action", "why"), tuple(rows))
    if pool.finding.reason == VALIDATED_WITHOUT:
        yield Note("The pool counts as validated without these nodes: they take no pods until they pass again.")


def _admission(done: Mapping[str, Any]) -> Iterator[Block]:
    """Of a gated pool: which nodes take users' pods since this run, and why the others do not."""
    rows: list[tuple[Inline, ...]] = [
        (code(name), text("opened"), text(""), text("")) for name in done.get("admitted") or []
    ]
    for item in done.get("closed") or []:
        why = code(item.get("reason", "")), text(item.get("message", ""))
        rows.append((code(item.get("node", "")), text("stays closed"), *why))
    if not rows:
        return
    yield Heading(3, "Admission")
    head = ("node", "now", "reason", "message")
    yield Table("Nodes that were opened for users' pods, or stay closed", head, tuple(rows[:LISTED]))
    if len(rows) > LISTED:
        yield Paragraph((text(f"and {len(rows) - LISTED} more"),))


def _drifted_nodes(pool: PoolSection) -> Iterator[Block]:
    """No defect: jobs run there as before. They are named because nothing replaces these nodes automatically."""
    yield Heading(3, "Drifted nodes")
    yield Items(tuple((text(str(item.get("message") or item.get("node", ""))),) for item in pool.drifted[:LISTED]))
    if len(pool.drifted) > LISTED:
        yield Paragraph((text(f"and {len(pool.drifted) - LISTED} more."),))
    yield Note(
        "These nodes stay until their jobs have ended. A gpu_lifecycle run with replaceDrifted: idle replaces the idle "
        "ones."
    )


def _probe(report: PoolReport) -> Iterator[Block]:
    took = max(0.0, report.finished_at - report.started_at)
    promised = (
        f"{report.physical} physical GPU(s) per node × {report.replicas}"
        if report.replicas > 1
        else (f"{report.physical} whole GPU(s) per node")
    )
    yield Heading(3, f"Probe {clean(report.probe)}", str(report.outcome))
    yield Paragraph(
        (text(f"{len(report.nodes)} node(s), {promised}; {moment(report.started_at)} UTC, took {took:.0f} s."),)
    )
    measured = tuple(figures(report))
    if measured:
        # The figures of a few nodes are readable at a glance; those of fifty are folded.
        yield from measured if len(report.nodes) <= 4 else (Fold("Figures of all nodes", measured),)
    if report.nodes:
        yield Fold("All checks", tuple(_checks(report)))


def _checks(report: PoolReport) -> Iterator[Block]:
    for node in sorted(report.nodes, key=lambda node: (node.outcome is Outcome.PASSED, node.node)):
        yield _node_table(node)
    if report.pool_checks:
        yield Table("Whole pool", _CHECK_HEAD, tuple(_check_row(check) for check in report.pool_checks))


_CHECK_HEAD = ("check", "outcome", "reason", "what was found")


def _node_table(node: NodeReport) -> Table:
    instance = ", ".join(clean(value) for value in node.instance.values() if value)
    caption = f"{clean(node.node)}: {node.outcome}" + (f" ({instance})" if instance else "")
    return Table(caption, _CHECK_HEAD, tuple(_check_row(check) for check in node.checks))


def _check_row(check: Check) -> tuple[Inline, ...]:
    return (code(check.name), Badge(str(check.outcome)), code(check.reason), text(check.message))


def _history(run: RunReport, pool: PoolSection) -> Iterator[Block]:
    yield Heading(3, "Last verdicts")
    if pool.history is None:
        yield Paragraph((text("Not shown: you need the permission to read assets."),))
        return
    if not pool.history:
        yield Paragraph((text("No verdict has been published yet."),))
        return
    yield history_table(pool.history, run.root, this_run=run.run_id)
    yield Paragraph((Link("Full history of the pool, by node", run.root + history_path(run.cluster, pool.name)),))


def history_table(history: tuple[VerdictAt, ...], root: str, *, this_run: str = "") -> Table:
    """Verdicts, newest first."""
    return Table(
        "Verdicts, newest first",
        ("time (UTC)", "state", "reason", "nodes", "run"),
        tuple(
            (
                text(moment(verdict.at)),
                Badge(("became " if verdict.became else "") + str(verdict.state)),
                code(verdict.reason),
                text(_nodes_of(verdict)),
                _run_of(verdict, root, this_run),
            )
            for verdict in history
        ),
    )


def _nodes_of(verdict: VerdictAt) -> str:
    counts = Counter(outcome.partition(":")[0] for outcome in verdict.nodes.values())
    return ", ".join(f"{count} {clean(outcome).lower()}" for outcome, count in sorted(counts.items())) or "–"


def _run_of(verdict: VerdictAt, root: str, this_run: str) -> Inline:
    if not verdict.dag_id:
        return text("created manually")
    if verdict.run_id == this_run:
        return text("this run")
    return Link(clean(verdict.run_id), root + report_path(verdict.dag_id, verdict.run_id))
