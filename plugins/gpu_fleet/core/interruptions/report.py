"""What an interruption came to: node by node and pod by pod, as a document for people and programs. Pure.

A report names every pod, also those that nothing happened to: somebody will ask what became of a job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = "gpu-fleet.io/interruption/v1"
#: What happened to the nodes of a report.
INTERRUPTED, DRAINED = "interrupted", "drained"


class NodeOutcome(StrEnum):
    """What became of a node's pods; the order is that of gravity."""

    LOST = "Lost"  # pods ended with the instance
    HELD = "Held"  # pods are left that a drain without a deadline may not force
    UNSEEN = "Unseen"  # its pods could not be seen in time
    FORCED = "Forced"  # all ended in time, some of them by direct deletion
    DRAINED = "Drained"  # all ended in time, by evictions
    EMPTY = "Empty"  # there was nothing to evict
    NOTED = "Noted"  # nothing was to be done now


#: Seconds before the end of its instance at which nobody counts the seconds any more: a scheduled change is days ahead.
_FAR_S = 3600.0
#: Outcomes of pods (``core/drain/records.py``) that are still under way, or need none.
_NOTHING = frozenset({"Left"})


def outcome_of(pods: Iterable[Mapping[str, Any]], *, acted: bool, unseen: str = "", held: bool = False) -> NodeOutcome:
    """What became of a node.

    :param pods: the records of its pods.
    :param acted: whether the run drained it.
    :param unseen: why its pods could not be seen.
    :param held: whether pods are left that were to go.
    """
    if not acted:
        return NodeOutcome.NOTED
    found = Counter(str(pod.get("outcome")) for pod in pods)
    if found["Lost"]:
        return NodeOutcome.LOST
    if unseen:
        return NodeOutcome.UNSEEN
    if held:
        return NodeOutcome.HELD
    if found["Forced"]:
        return NodeOutcome.FORCED
    return (
        NodeOutcome.DRAINED
        if any(count for name, count in found.items() if name not in _NOTHING)
        else (NodeOutcome.EMPTY)
    )


@dataclass(frozen=True)
class InterruptionReport:
    """
    :ivar nodes: one mapping per node; keys as :meth:`node_row` gives them.
    :ivar pods: records of pods, as ``core/drain/records.py`` writes them.
    :ivar elsewhere: nodes that another run drains: node -> run.
    :ivar unknown: instances that no node or NodeClaim has: instance -> why that is no harm, or what is uncertain.
    :ivar skipped: by cause, how many notices the trigger passed over.
    :ivar problems: what could not be read or done, in words.
    :ivar gpu_seconds: computed by the pods that ended before they had finished: lost at most.
    :ivar usd: what these cost; ``None`` if a price is unknown.
    :ivar prices: date and source of the prices, in words.
    :ivar deed: what happened to the nodes: EC2 interrupted them, or a person had them drained.
    :ivar said: the headline of a report about nothing that was done: a plan.
    :ivar block: of a Capacity Block that ended: its instance hours (``core/reservations/account.py``).
    """

    cluster: str
    began: float
    ended: float
    nodes: Sequence[Mapping[str, Any]] = ()
    pods: Sequence[Mapping[str, Any]] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    problems: Sequence[str] = ()
    gpu_seconds: float = 0.0
    usd: float | None = None
    prices: str = ""
    deed: str = INTERRUPTED
    said: str = ""
    block: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "cluster": self.cluster,
            "began": self.began,
            "ended": self.ended,
            "headline": self.headline(),
            "deed": self.deed,
            "said": self.said,
            "nodes": [dict(each) for each in self.nodes],
            "pods": [dict(each) for each in self.pods],
            "elsewhere": dict(self.elsewhere),
            "unknown": dict(self.unknown),
            "skipped": dict(self.skipped),
            "problems": list(self.problems),
            "gpuSeconds": round(self.gpu_seconds, 1),
            "usd": None if self.usd is None else round(self.usd, 2),
            "prices": self.prices,
            **({} if self.block is None else {"block": dict(self.block)}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> InterruptionReport:
        """
        :raises ValueError: for something else.
        """
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            raise ValueError(f"no report of schema {SCHEMA}")
        try:
            usd = value.get("usd")
            return cls(
                cluster=str(value["cluster"]),
                began=float(value["began"]),
                ended=float(value["ended"]),
                nodes=tuple(dict(each) for each in value["nodes"]),
                pods=tuple(dict(each) for each in value["pods"]),
                elsewhere={str(key): str(run) for key, run in value["elsewhere"].items()},
                unknown={str(key): str(why) for key, why in value["unknown"].items()},
                skipped={str(key): int(count) for key, count in value["skipped"].items()},
                problems=tuple(map(str, value["problems"])),
                gpu_seconds=float(value["gpuSeconds"]),
                usd=None if usd is None else float(usd),
                prices=str(value.get("prices") or ""),
                deed=str(value.get("deed") or INTERRUPTED),
                said=str(value.get("said") or ""),
                block=dict(value["block"]) if value.get("block") else None,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no report of schema {SCHEMA}: {error!r}") from error

    # --- in words --------------------------------------------------------------------------------------------------

    def acted(self) -> list[Mapping[str, Any]]:
        """The nodes that this run drained."""
        return [node for node in self.nodes if node.get("outcome") != NodeOutcome.NOTED]

    def with_outcome(self, *outcomes: str) -> list[Mapping[str, Any]]:
        """The pods with one of these outcomes."""
        return [pod for pod in self.pods if pod.get("outcome") in outcomes]

    @property
    def bad(self) -> bool:
        """Whether a person should look: work was lost, pods are left, or nobody knows."""
        bad = (NodeOutcome.LOST, NodeOutcome.HELD, NodeOutcome.UNSEEN)
        return any(node.get("outcome") in bad for node in self.nodes)

    def spare_s(self) -> float | None:
        """Seconds between the end of the last pod and its node's deadline, on the node where that was least."""
        spare = [
            float(node["deadline"]) - float(node["emptiedAt"])
            for node in self.acted()
            if node.get("deadline") is not None and node.get("emptiedAt") is not None
        ]
        return min(spare) if spare else None

    def headline(self) -> str:
        """One sentence: what a person who is paged reads first."""
        if self.said:
            return self.said
        acted = self.acted()
        if not acted:
            return self._nothing_done()
        pools = ", ".join(sorted({str(node.get("pool")) for node in acted}))
        went = len(self.with_outcome("Evicted", "Deleted", "Forced", "Terminated", "Gone", "StuckTerminating"))
        forced, lost = len(self.with_outcome("Forced")), len(self.with_outcome("Lost"))
        spare = self.spare_s()
        when = ""
        if spare is not None and spare < _FAR_S:
            when = (
                f"; the last was gone {spare:.0f} s before the end"
                if spare >= 0
                else (f"; the last was gone {-spare:.0f} s after the end")
            )
        held = [node for node in acted if node.get("outcome") == NodeOutcome.HELD]
        left = f"; pods are LEFT on {_count(len(held), 'node')}" if held else ""
        in_time = "" if self.deed == DRAINED and spare is None else " in time"
        return (
            f"{_count(len(acted), 'node')} of {pools} {self.deed}: {_count(went, 'pod')} ended{in_time}"
            f"{f', {forced} of them forced' if forced else ''}{f', {lost} LOST' if lost else ', none lost'}{when}{left}"
        )

    def _nothing_done(self) -> str:
        if self.nodes:
            return f"{_count(len(self.nodes), 'node')} noted; nothing was to be evicted now"
        if self.elsewhere:
            return f"{_count(len(self.elsewhere), 'node')} already drained by another run"
        return (
            f"Nothing to do: {_count(len(self.unknown), 'instance')} of the notices is no node of ours (any more)"
            if (self.unknown)
            else "Nothing to do: no node is interrupted"
        )

    def lost_pools(self) -> dict[str, list[str]]:
        """Pool or node group -> its nodes that this run drained."""
        found: dict[str, list[str]] = {}
        for node in self.acted():
            found.setdefault(str(node.get("pool")), []).append(str(node.get("node")))
        return {pool: sorted(nodes) for pool, nodes in sorted(found.items())}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
