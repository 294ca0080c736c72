"""What a run says about its nodes' stages: its new nodes, the pool's percentiles, and what got slower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.stages.history import Percentiles, StageHistory, percentiles
from gpu_fleet.core.stages.moments import NodeTimes
from gpu_fleet.core.stages.slower import Slower, slower

#: XCom key of the publishing task.
STAGES = "stages"


@dataclass(frozen=True)
class StageReport:
    """
    :ivar nodes: those that this run was the first to record.
    :ivar recorded: how many nodes the pool's history has.
    :ivar percentiles: of the whole history, by instance type and stage.
    :ivar slower: sentences about stages that took longer than usual.
    """

    pool: str
    nodes: tuple[NodeTimes, ...] = ()
    recorded: int = 0
    percentiles: Mapping[str, Mapping[str, Percentiles]] = field(default_factory=dict)
    slower: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StageReport:
        """
        :raises KeyError, TypeError, ValueError, AttributeError: for what is no such report.
        """
        return cls(
            pool=str(value["pool"]),
            nodes=tuple(NodeTimes.from_json(node) for node in value["nodes"]),
            recorded=int(value["recorded"]),
            percentiles={
                str(kind): {str(stage): _percentiles(each) for stage, each in stages.items()}
                for kind, stages in value["percentiles"].items()
            },
            slower=tuple(str(each["message"]) for each in value["slower"]),
        )

    def to_json(self) -> dict[str, Any]:
        """For the run's report as JSON."""
        return {
            "nodes": [node_json(node) for node in self.nodes],
            "recorded": self.recorded,
            "percentiles": {
                kind: {stage: each.to_json() for stage, each in stages.items()}
                for kind, stages in self.percentiles.items()
            },
            "slower": list(self.slower),
        }


def _percentiles(value: Mapping[str, Any]) -> Percentiles:
    p50, p95 = value["p50"], value["p95"]
    return Percentiles(int(value["samples"]), None if p50 is None else float(p50), None if p95 is None else float(p95))


def regressions(history: StageHistory, run: str) -> list[Slower]:
    """What got slower in a run, against what other runs have recorded."""
    return slower(history.before(run), history.of_run(run))


def summary(pool: str, history: StageHistory, run: str) -> dict[str, Any]:
    """What :class:`StageReport` is read from."""
    return {
        "pool": pool,
        "nodes": [node_json(node) for node in history.of_run(run)],
        "recorded": len(history.nodes),
        "percentiles": percentiles_json(history),
        "slower": [each.to_json() for each in regressions(history, run)],
    }


def percentiles_json(history: StageHistory) -> dict[str, Any]:
    return {
        kind: {stage: each.to_json() for stage, each in stages.items()}
        for kind, stages in percentiles(history.nodes).items()
    }


def node_json(node: NodeTimes) -> dict[str, Any]:
    """A node with the seconds of its stages, for other programs; ``null``: unknown."""
    seconds = {**{str(stage): seconds for stage, seconds in node.stages().items()}, "total": node.total}
    return {**node.to_json(), "seconds": seconds}
