"""The result of a validation, typed and JSON-able: checks make a node's outcome, nodes make a pool's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = "gpu-fleet.io/validation/v1"
#: Reason of a check that rests on one that did not pass.
NOT_REACHED = "NotReached"
NO_NODES = "the pool has no nodes"


class Outcome(StrEnum):
    """What came of a check, a node or a pool.

    ``BUSY``: users' pods use the GPUs; nothing could be proven and no user was disturbed. ``IDLE``: there is no node.
    ``INCONCLUSIVE``: the evidence is missing or contradicts itself; never a pass. ``SKIPPED``: not requested, or
    pointless after an earlier failure.
    """

    PASSED = "Passed"
    FAILED = "Failed"
    INCONCLUSIVE = "Inconclusive"
    BUSY = "Busy"
    IDLE = "Idle"
    SKIPPED = "Skipped"


#: Which outcome of a part decides the whole, most decisive first. A busy node does not spoil the pool's pass.
_OF_CHECKS = (Outcome.FAILED, Outcome.INCONCLUSIVE, Outcome.BUSY, Outcome.PASSED)
_OF_NODES = (Outcome.FAILED, Outcome.INCONCLUSIVE, Outcome.PASSED, Outcome.BUSY)


def _decisive(outcomes: Iterable[Outcome], order: tuple[Outcome, ...], nothing: Outcome) -> Outcome:
    found = set(outcomes)
    return next((outcome for outcome in order if outcome in found), nothing)


@dataclass(frozen=True)
class Check:
    """One thing that was checked on one node.

    :ivar reason: CamelCase; for a pass it says what passed.
    :ivar figures: what was measured, JSON-able.
    """

    name: str
    outcome: Outcome
    reason: str
    message: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether other checks may rest on this one: it passed, or was left out because it does not apply."""
        return self.outcome is Outcome.PASSED or (self.outcome is Outcome.SKIPPED and self.reason != NOT_REACHED)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "outcome": str(self.outcome),
            "reason": self.reason,
            "message": self.message,
            "figures": dict(self.figures),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Check:
        return cls(
            str(value["name"]),
            Outcome(value["outcome"]),
            str(value["reason"]),
            str(value["message"]),
            dict(value.get("figures") or {}),
        )


def passed(name: str, reason: str, message: str, **figures: object) -> Check:
    return Check(name, Outcome.PASSED, reason, message, figures)


def failed(name: str, reason: str, message: str, **figures: object) -> Check:
    return Check(name, Outcome.FAILED, reason, message, figures)


def doubt(name: str, reason: str, message: str, **figures: object) -> Check:
    return Check(name, Outcome.INCONCLUSIVE, reason, message, figures)


def busy(name: str, reason: str, message: str, **figures: object) -> Check:
    return Check(name, Outcome.BUSY, reason, message, figures)


def skipped(name: str, reason: str, message: str) -> Check:
    return Check(name, Outcome.SKIPPED, reason, message)


def not_reached(name: str, broken: str) -> Check:
    """A check that says nothing, because the one that it rests on did not pass."""
    return skipped(name, NOT_REACHED, f"rests on check '{broken}', which did not pass")


@dataclass(frozen=True)
class NodeReport:
    """All checks of one node; an empty list is Inconclusive, never a pass.

    :ivar at: epoch seconds, by the API server's clock, at which its probes were judged; ``None``: it was not probed.
    """

    node: str
    instance: Mapping[str, str]
    checks: tuple[Check, ...]
    at: float | None = None

    @property
    def outcome(self) -> Outcome:
        return _decisive((check.outcome for check in self.checks), _OF_CHECKS, Outcome.INCONCLUSIVE)

    @property
    def cause(self) -> Check | None:
        """The check that decided a node that did not pass."""
        return next((c for c in self.checks if c.outcome is self.outcome and c.outcome is not Outcome.PASSED), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "instance": dict(self.instance),
            "outcome": str(self.outcome),
            "checks": [check.to_json() for check in self.checks],
            "at": self.at,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NodeReport:
        at = value.get("at")
        return cls(
            str(value["node"]),
            dict(value.get("instance") or {}),
            tuple(Check.from_json(check) for check in value["checks"]),
            None if at is None else float(at),
        )


@dataclass(frozen=True)
class PoolReport:
    """One probe on all nodes of one pool.

    :ivar physical: GPUs per node according to EC2.
    :ivar replicas: how often each is shared.
    :ivar pool_checks: checks of the pool as a whole.
    :ivar notes: sentences for the reader.
    :ivar idle: why it has no nodes, unless the pool itself has none.
    """

    cluster: str
    pool: str
    probe: str
    run: str
    physical: int
    replicas: int
    started_at: float
    finished_at: float
    nodes: tuple[NodeReport, ...]
    pool_checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    idle: str = ""

    @property
    def why_idle(self) -> str:
        """Why no node was tested, in words."""
        return self.idle or NO_NODES

    @property
    def outcome(self) -> Outcome:
        if not self.nodes:
            return Outcome.IDLE
        parts = [*(node.outcome for node in self.nodes), *(check.outcome for check in self.pool_checks)]
        order = _OF_NODES if any(n.outcome is Outcome.PASSED for n in self.nodes) else _OF_CHECKS
        return _decisive(parts, order, Outcome.INCONCLUSIVE)

    def failures(self) -> list[dict[str, str]]:
        """What failed or is in doubt, node by node, for messages and XComs."""
        found = [
            {"node": node.node, "check": cause.name, "reason": cause.reason, "message": cause.message}
            for node in self.nodes
            if node.outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE) and (cause := node.cause or _NO_CHECK)
        ]
        found += [
            {"node": "", "check": check.name, "reason": check.reason, "message": check.message}
            for check in self.pool_checks
            if check.outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE)
        ]
        return found

    def sentence(self) -> str:
        """One sentence for logs and error messages."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[str(node.outcome)] = counts.get(str(node.outcome), 0) + 1
        text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "no node"
        causes = "; ".join(
            f"{failure['node'] or 'pool'}: {failure['reason']}: {failure['message']}" for failure in self.failures()[:3]
        )
        more = f" (and {len(self.failures()) - 3} more)" if len(self.failures()) > 3 else ""
        return f"probe {self.probe} of pool {self.pool}: {text}" + (f"; {causes}{more}" if causes else "")

    def summary(self) -> dict[str, Any]:
        """The small result for XCom."""
        return {
            "probe": self.probe,
            "outcome": str(self.outcome),
            "nodes": {node.node: str(node.outcome) for node in self.nodes},
            "failures": self.failures()[:10],
            **({"idle": self.why_idle} if not self.nodes else {}),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "cluster": self.cluster,
            "pool": self.pool,
            "probe": self.probe,
            "run": self.run,
            "outcome": str(self.outcome),
            "expected": {"physical": self.physical, "replicas": self.replicas},
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            "nodes": [node.to_json() for node in self.nodes],
            "poolChecks": [check.to_json() for check in self.pool_checks],
            "notes": list(self.notes),
            "idle": self.idle,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PoolReport:
        return cls(
            cluster=str(value["cluster"]),
            pool=str(value["pool"]),
            probe=str(value["probe"]),
            run=str(value["run"]),
            physical=int(value["expected"]["physical"]),
            replicas=int(value["expected"]["replicas"]),
            started_at=float(value["startedAt"]),
            finished_at=float(value["finishedAt"]),
            nodes=tuple(NodeReport.from_json(node) for node in value["nodes"]),
            pool_checks=tuple(Check.from_json(check) for check in value.get("poolChecks") or []),
            notes=tuple(str(note) for note in value.get("notes") or []),
            idle=str(value.get("idle") or ""),
        )


_NO_CHECK = Check("none", Outcome.INCONCLUSIVE, "NothingChecked", "no check took place on this node")
