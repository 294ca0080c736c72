"""``python -m gpu_fleet capacity-history CLUSTER``: how long each stage of the coming of its nodes took.

It reads Airflow's database, so it runs where Airflow's own command line does: with Airflow's configuration.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from airflow.utils.session import create_session
from sqlalchemy.exc import SQLAlchemyError

from gpu_fleet.core.markup.blocks import clean, moment
from gpu_fleet.core.stages.history import TOTAL, Percentiles, StageHistory, percentiles
from gpu_fleet.core.stages.moments import NodeTimes, Stage
from gpu_fleet.core.stages.summary import node_json, percentiles_json
from gpu_fleet.ui.queries import load_stages

#: Newest nodes of a pool that the table lists; ``--json`` has all.
LISTED = 20
_HEAD = ("node", "type", "capacity", "created (UTC)", *map(str, Stage), TOTAL)


def capacity_history(cluster: str, *, as_json: bool) -> int:
    """Print the history of every pool.

    :returns: the exit code: 1 if nothing is recorded of the cluster, 2 if the database cannot be read.
    """
    try:
        with create_session() as session:
            found = load_stages(session, cluster)
    except SQLAlchemyError as error:
        print(f"error: Airflow's database cannot be read: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    pools = {pool: history for pool, history in found.items() if history.nodes}
    if as_json:
        print(json.dumps({"cluster": cluster, "pools": {pool: _json(history) for pool, history in pools.items()}}))
    elif pools:
        print("\n\n".join("\n".join(_pool(pool, history)) for pool, history in pools.items()))
        print("\nSeconds, from the time stamps of Kubernetes and EC2; '-': unknown.")
    if not pools:
        print(f"error: nothing is recorded of cluster {cluster}: no run has seen its nodes", file=sys.stderr)
    return 0 if pools else 1


def _json(history: StageHistory) -> dict[str, Any]:
    return {
        "since": history.since,
        "nodes": [node_json(node) for node in history.nodes],
        "percentiles": percentiles_json(history),
    }


def _pool(pool: str, history: StageHistory) -> Iterator[str]:
    newest = history.nodes[::-1][:LISTED]
    more = f", the newest {len(newest)} are listed" if len(newest) < len(history.nodes) else ""
    yield f"Pool {clean(pool)}: {len(history.nodes)} node(s){more}"
    yield from _table([_HEAD, *map(_row, newest)], text_columns=4)
    yield ""
    rows: list[tuple[str, ...]] = [("percentile", "type", "nodes", *map(str, Stage), TOTAL)]
    for kind, stages in percentiles(history.nodes).items():
        count = sum(kind in (node.instance_type, "all") for node in history.nodes)
        for name in ("p50", "p95"):
            figures = (_figure(getattr(stages.get(each, _NOTHING), name)) for each in (*map(str, Stage), TOTAL))
            rows.append((name, clean(kind), str(count), *figures))
    yield from _table(rows, text_columns=2)


_NOTHING = Percentiles(0, None, None)


def _row(node: NodeTimes) -> tuple[str, ...]:
    created = "-" if node.created is None else moment(node.created)
    figures = (_figure(node.seconds(stage)) for stage in Stage)
    return (
        clean(node.node).partition(".")[0],
        clean(node.instance_type or "-"),
        clean(node.capacity_type or "-"),
        created,
        *figures,
        _figure(node.total),
    )


def _figure(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f}"


def _table(rows: Sequence[tuple[str, ...]], *, text_columns: int) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
