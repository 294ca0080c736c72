"""A pool's nodes and their stages over time: bounded, and kept by Airflow beside the pool's asset.

Airflow's asset state store is the place because it outlives runs, the nodes, and the cluster's teardown: the pool that
is brought up again next month is compared with this month's. A ConfigMap would be gone with the cluster, an event's
``extra`` has no room for the nodes of a large pool, and an Airflow Variable is shared by all who may edit Variables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpu_fleet.core.stages.moments import Moment, NodeTimes, Stage

#: Key in the asset state store of the asset ``gpu-fleet://<cluster>/<pool>/validated``.
KEY = "stages"
#: Most nodes that are kept, and most bytes: Airflow warns of values beyond 65,535 (airflow 3.3
#: ``[state_store] max_value_storage_bytes``).
MOST_NODES, MOST_BYTES = 200, 60_000
#: The row of all instance types together.
ALL_TYPES = "all"


@dataclass(frozen=True)
class StageHistory:
    """
    :ivar since: epoch seconds at which the history began, by the cluster's clock; ``None``: it has not begun.
    :ivar nodes: oldest first.
    """

    since: float | None = None
    nodes: tuple[NodeTimes, ...] = ()

    def with_nodes(
        self, seen: Iterable[NodeTimes], proven: Mapping[str, float], *, run: str, now: float | None
    ) -> StageHistory:
        """The history after a run; harmless to repeat.

        :param seen: the run's nodes.
        :param proven: node name -> when this run's proof passed.
        :param run: ``<dag_id>/<run_id>``.
        :param now: of the cluster's clock; ``None``: not known, so a history does not begin.
        """
        since = self.since if self.since is not None else now
        found = {node.key: node for node in self.nodes}
        for node in seen:
            before = found.get(node.key)
            merged = before.completed(node) if before is not None else replace(node, run=run)
            moment = proven.get(node.node)
            if moment is not None and Moment.PROVEN not in merged.at and _first_proof(merged, since):
                merged = replace(merged, at={**merged.at, Moment.PROVEN: moment})
            found[node.key] = merged
        ordered = sorted(found.values(), key=lambda node: (node.created or 0.0, node.key))
        return StageHistory(since, _bounded(ordered))

    def of_run(self, run: str) -> list[NodeTimes]:
        """The nodes that this run was the first to record."""
        return [node for node in self.nodes if node.run == run]

    def before(self, run: str) -> list[NodeTimes]:
        """The nodes that other runs have recorded."""
        return [node for node in self.nodes if node.run != run]

    def to_json(self) -> dict[str, Any]:
        return {"since": self.since, "nodes": [node.to_json() for node in self.nodes]}

    @classmethod
    def from_json(cls, value: object) -> StageHistory:
        """Total: what cannot be read, for example of a later version, is left out."""
        if not isinstance(value, Mapping):
            return cls()
        since, nodes = value.get("since"), value.get("nodes")
        readable = map(_read, nodes) if isinstance(nodes, Sequence) and not isinstance(nodes, str) else ()
        return cls(
            float(since) if isinstance(since, int | float) else None,
            tuple(node for node in readable if node is not None),
        )


def _read(value: Any) -> NodeTimes | None:
    try:
        return NodeTimes.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _first_proof(node: NodeTimes, since: float | None) -> bool:
    """Whether a proof can be the node's first: earlier runs may have proven a node that is older than the history."""
    return node.asked or (since is not None and node.created is not None and node.created >= since)


def _bounded(nodes: Sequence[NodeTimes]) -> tuple[NodeTimes, ...]:
    kept, size = [], 100
    for node in list(nodes)[::-1][:MOST_NODES]:
        size += len(json.dumps(node.to_json())) + 2
        if size > MOST_BYTES:
            break
        kept.append(node)
    return tuple(kept[::-1])


@dataclass(frozen=True)
class Percentiles:
    """:ivar samples: how many nodes; the percentiles are ``None`` without any."""

    samples: int
    p50: float | None
    p95: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles:
        ordered = sorted(values)
        return cls(len(ordered), nearest_rank(ordered, 50), nearest_rank(ordered, 95))

    def to_json(self) -> dict[str, Any]:
        return {"samples": self.samples, "p50": self.p50, "p95": self.p95}


def nearest_rank(ordered: Sequence[float], percent: int) -> float | None:
    """The percentile by nearest rank: a value that was measured, also of few samples."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


#: Row of the whole way in tables of percentiles.
TOTAL = "total"


def percentiles(nodes: Sequence[NodeTimes]) -> dict[str, dict[str, Percentiles]]:
    """Instance type (and :data:`ALL_TYPES`, if there are several) -> stage (and ``total``) -> percentiles."""
    types = sorted({node.instance_type for node in nodes})
    groups = {kind: [node for node in nodes if node.instance_type == kind] for kind in types}
    if len(types) > 1:
        groups = {ALL_TYPES: list(nodes), **groups}
    return {
        kind: {
            **{str(stage): Percentiles.of(_known(node.seconds(stage) for node in group)) for stage in Stage},
            TOTAL: Percentiles.of(_known(node.total for node in group)),
        }
        for kind, group in groups.items()
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
