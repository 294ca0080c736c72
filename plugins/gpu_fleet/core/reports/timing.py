"""Where the time of a pool's new nodes went: a picture, the figures, and the percentiles of the pool's history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpu_fleet.core.markup.blocks import (
    Bar,
    Bars,
    Block,
    Fold,
    Heading,
    Inline,
    Note,
    Paragraph,
    Segment,
    Table,
    clean,
    code,
    text,
)
from gpu_fleet.core.stages.history import TOTAL, Percentiles
from gpu_fleet.core.stages.moments import COMING, NodeTimes, Stage
from gpu_fleet.core.stages.summary import StageReport

#: Most nodes in the picture: the slowest.
SHOWN = 20
UNKNOWN = "unknown"


def timing(report: StageReport) -> Iterator[Block]:
    """The blocks; none for a pool of which nothing is recorded."""
    if not report.recorded:
        return
    yield Heading(3, "Where the time went")
    for sentence in report.slower:
        yield Note(f"Slower than usual: {clean(sentence)}.")
    if report.nodes:
        yield picture(report)
        yield nodes_table(report.nodes)
    else:
        yield Paragraph((text("No node has come with this run."),))
    words = f"All nodes of the pool's history ({report.recorded})"
    yield Fold(words, (percentiles_table(report.percentiles),))


def picture(report: StageReport) -> Bars:
    """The slowest nodes first."""
    ordered = sorted(report.nodes, key=lambda node: (-_known(node), node.node))[:SHOWN]
    left_out = len(report.nodes) - len(ordered)
    slowest = ordered[0]
    longest = max(
        ((seconds, stage) for stage in COMING if (seconds := slowest.seconds(stage)) is not None), default=None
    )
    words = f"{len(ordered)} node(s)" + (f", the slowest of {len(report.nodes)}" if left_out else "")
    words += f"; the slowest is {clean(slowest.node)} with {_known(slowest):.0f} s until its proof"
    if longest is not None:
        words += f", of which '{longest[1].words}' took {longest[0]:.0f} s"
    return Bars(
        name=f"stages-{report.pool}",
        title=f"Seconds of each stage until the nodes of pool {clean(report.pool)} were proven",
        description=f"{words}. The table has all figures.",
        legend=tuple(named(stage) for stage in COMING),
        bars=tuple(
            Bar(
                f"{clean(node.node).partition('.')[0]} ({clean(node.instance_type)})",
                tuple(
                    Segment(number, stage.words, node.seconds(stage)) for number, stage in enumerate(COMING, start=1)
                ),
            )
            for node in ordered
        ),
    )


def _known(node: NodeTimes) -> float:
    return sum(node.seconds(stage) or 0.0 for stage in COMING)


def nodes_table(nodes: tuple[NodeTimes, ...]) -> Table:
    rows: list[tuple[Inline, ...]] = []
    for node in nodes:
        stages = (text(seconds_of(node.seconds(stage))) for stage in Stage)
        rows.append((code(node.node), text(node.instance_type or "–"), *stages, text(seconds_of(node.total))))
    head = ("node", "instance type", *map(str, Stage), TOTAL)
    return Table("Seconds of each stage", head, tuple(rows), frozenset(range(2, len(head))))


def percentiles_table(percentiles: Mapping[str, Mapping[str, Percentiles]]) -> Table:
    """Half of the nodes took at most p50, 95 of 100 at most p95."""
    rows: list[tuple[Inline, ...]] = []
    for kind, stages in percentiles.items():
        for stage, each in stages.items():
            words = f"{TOTAL}: pod pending → proven" if stage == TOTAL else _words(stage)
            rows.append(
                (
                    text(kind or "–"),
                    text(words),
                    text(each.samples),
                    text(seconds_of(each.p50)),
                    text(seconds_of(each.p95)),
                )
            )
    head = ("instance type", "stage", "nodes", "p50 (s)", "p95 (s)")
    return Table("Percentiles of the pool's history", head, tuple(rows), frozenset({2, 3, 4}))


def _words(stage: str) -> str:
    return named(Stage(stage)) if stage in Stage.__members__.values() else stage


def named(stage: Stage) -> str:
    """``join: launched → registered``: the short name heads the columns of tables."""
    return f"{stage}: {stage.words}"


def seconds_of(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}"
