"""What a drain is asked for, and what it has come to."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpu_fleet.core.drain.actions import Limits
from gpu_fleet.core.drain.records import Outcome, PodRecord


@dataclass(frozen=True)
class Target:
    """A node to drain.

    :ivar limits: how long; moments are epoch seconds by the cluster's clock (``KubeClient.now``), as is the deadline
        that AWS gives.
    """

    node: str
    limits: Limits


@dataclass(frozen=True)
class Drained:
    """What a drain has come to.

    :ivar records: every pod, by node and name.
    :ivar unseen: nodes whose pods could not be listed before their time was up, and why.
    :ivar seconds: how long it took.
    """

    records: list[PodRecord]
    unseen: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def with_outcome(self, *outcomes: Outcome) -> list[PodRecord]:
        return [record for record in self.records if record.outcome in outcomes]
