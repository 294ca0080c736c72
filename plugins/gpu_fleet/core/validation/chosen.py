"""What a run has chosen to validate of a pool: which nodes, and what the pool looked like at that moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ChosenNodes:
    """What the task that chose and protected a pool's nodes hands to the tasks after it, by XCom.

    :ivar nodes: names of the nodes to validate.
    :ivar physical: GPUs per node, according to EC2.
    :ivar replicas: containers per GPU that the pool promises.
    :ivar untested: nodes that would take probes and are not in this run's sample.
    :ivar idle: why none of the nodes that exist can be validated; empty otherwise.
    :ivar blamed: nodes in service that failed earlier and have not passed since, in the sample or not.
    :ivar drifted: nodes of an older template -> in what they differ.
    :ivar node_claims: the pool's NodeClaims, with which the end of the validation is compared.
    :ivar claims: NodeClaim -> its node, for the NodeClaims that have one.
    :ivar protected: nodes that this run has protected, without those that were protected before.
    :ivar instances: node -> what identifies its machine (id, type, zone, capacityType).
    """

    nodes: Sequence[str]
    physical: int
    replicas: int
    untested: Sequence[str] = ()
    idle: str = ""
    blamed: Sequence[str] = ()
    drifted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    node_claims: Sequence[str] = ()
    claims: Mapping[str, str] = field(default_factory=dict)
    protected: Sequence[str] = ()
    instances: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": list(self.nodes),
            "untested": list(self.untested),
            "idle": self.idle,
            "blamed": list(self.blamed),
            "drifted": {name: list(why) for name, why in self.drifted.items()},
            "nodeClaims": list(self.node_claims),
            "claims": dict(self.claims),
            "physical": self.physical,
            "replicas": self.replicas,
            "protected": list(self.protected),
            "instances": {name: dict(instance) for name, instance in self.instances.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ChosenNodes:
        """From the XCom; a run that an earlier version of the package began may lack the keys with a default."""
        return cls(
            nodes=list(value["nodes"]),
            physical=int(value["physical"]),
            replicas=int(value["replicas"]),
            untested=list(value.get("untested") or ()),
            idle=str(value.get("idle") or ""),
            blamed=list(value.get("blamed") or ()),
            drifted={str(name): list(why) for name, why in dict(value.get("drifted") or {}).items()},
            node_claims=list(value.get("nodeClaims") or ()),
            claims=dict(value.get("claims") or {}),
            protected=list(value.get("protected") or ()),
            instances=dict(value.get("instances") or {}),
        )
