"""The moments in the coming of a node, and the stages between them.

All moments are time stamps of others: of the API server, of Karpenter and the kubelet in conditions, of EC2; the proof
is by the API server's clock. Time stamps are whole seconds (``metav1.Time``; EC2's ``LaunchTime``), so a stage is exact
to a second. A moment without a time stamp is
unknown, and so are the stages that it begins and ends; neither is ever taken for 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

#: Seconds by which two time stamps may be in the wrong order: both are cut to whole seconds, and EC2, the kubelet and
#: the API server have clocks of their own. Beyond that one of them is of something else, and the stage is unknown.
TOLERANCE_S = 2.0


class Moment(StrEnum):
    """In the order in which they come."""

    PENDING = "pending"
    CLAIMED = "claimed"
    LAUNCHED = "launched"
    REGISTERED = "registered"
    READY = "ready"
    PLUGIN = "plugin"
    PROVEN = "proven"
    USED = "used"


class Stage(StrEnum):
    """What a node spends its time with; in order."""

    REQUEST = "request"
    LAUNCH = "launch"
    JOIN = "join"
    READY = "ready"
    PLUGIN = "plugin"
    PROOF = "proof"
    USE = "use"

    @property
    def words(self) -> str:
        return _WORDS[self]

    @property
    def ends(self) -> tuple[Moment, Moment]:
        moments = list(Moment)
        index = list(Stage).index(self)
        return moments[index], moments[index + 1]


_WORDS = {
    Stage.REQUEST: "pod pending → NodeClaim",
    Stage.LAUNCH: "NodeClaim → instance launched",
    Stage.JOIN: "launched → registered",
    Stage.READY: "registered → Ready",
    Stage.PLUGIN: "Ready → GPUs allocatable",
    Stage.PROOF: "GPUs allocatable → proven",
    Stage.USE: "proven → first user pod",
}

#: The stages until a node is proven. How long it then waits for a user says nothing about provisioning.
COMING = tuple(stage for stage in Stage if stage is not Stage.USE)


@dataclass(frozen=True)
class NodeTimes:
    """One node's moments.

    :ivar key: UID of its NodeClaim (without one, of the Node): names come again.
    :ivar pod: ``namespace/name`` of the pod that waited for it, as far as known.
    :ivar asked: that pod was one of this package's.
    :ivar created: epoch seconds at which its NodeClaim was created (without one, the Node).
    :ivar run: ``<dag_id>/<run_id>`` that recorded the node first.
    :ivar at: moment -> epoch seconds, as far as known.
    """

    key: str
    node: str
    claim: str
    instance: str
    instance_type: str
    zone: str
    capacity_type: str
    pod: str = ""
    asked: bool = False
    created: float | None = None
    run: str = ""
    at: Mapping[Moment, float] = field(default_factory=dict)

    def seconds(self, stage: Stage) -> float | None:
        """How long a stage took; ``None``: unknown."""
        first, last = stage.ends
        if stage is Stage.USE:
            first = self._before_use()
        return _between(self.at.get(first), self.at.get(last))

    def _before_use(self) -> Moment:
        """A pod that was admitted before the proof waited for the GPUs alone."""
        proven, used = self.at.get(Moment.PROVEN), self.at.get(Moment.USED)
        return Moment.PLUGIN if proven is None or (used is not None and used < proven) else Moment.PROVEN

    @property
    def total(self) -> float | None:
        """From the pending pod to the proof; ``None``: one of both is unknown."""
        return _between(self.at.get(Moment.PENDING), self.at.get(Moment.PROVEN))

    def stages(self) -> dict[Stage, float | None]:
        return {stage: self.seconds(stage) for stage in Stage}

    def completed(self, other: NodeTimes) -> NodeTimes:
        """With what a later look has learnt: what is known stays, because the first look is the nearest to it.

        A condition's time stamp moves when it changes again (a node that was NotReady for a while), and pods vanish.
        """
        return replace(
            self,
            pod=self.pod or other.pod,
            asked=self.asked if self.pod else other.asked,
            at={**other.at, **self.at},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "node": self.node,
            "claim": self.claim,
            "instance": self.instance,
            "type": self.instance_type,
            "zone": self.zone,
            "capacityType": self.capacity_type,
            "pod": self.pod,
            "asked": self.asked,
            "created": self.created,
            "run": self.run,
            "at": {str(moment): self.at[moment] for moment in Moment if moment in self.at},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NodeTimes:
        """
        :raises KeyError, TypeError, ValueError: for what is no such record.
        """
        created = value.get("created")
        return cls(
            key=str(value["key"]),
            node=str(value["node"]),
            claim=str(value.get("claim") or ""),
            instance=str(value.get("instance") or ""),
            instance_type=str(value.get("type") or ""),
            zone=str(value.get("zone") or ""),
            capacity_type=str(value.get("capacityType") or ""),
            pod=str(value.get("pod") or ""),
            asked=bool(value.get("asked")),
            created=None if created is None else float(created),
            run=str(value.get("run") or ""),
            at={Moment(name): float(seconds) for name, seconds in dict(value["at"]).items()},
        )


def _between(first: float | None, last: float | None) -> float | None:
    if first is None or last is None or last < first - TOLERANCE_S:
        return None
    return round(max(0.0, last - first), 3)
