"""The fallback ladder of a pool: what is tried in which order, and how the placeholders say so. Pure.

A rung narrows the *placeholders*, by node affinity, and never the NodePool:

- Karpenter calls a node drifted whose labels its NodePool's requirements no longer admit
  (kubernetes-sigs/karpenter at 2266468, ``pkg/controllers/nodeclaim/disruption/drift.go``, ``areRequirementsDrifted``;
  the requirements are not part of the hash, ``pkg/apis/v1/nodepool.go``, but are compared with each claim's labels). A
  NodePool narrowed to its second rung would make every node of the first one drifted, and narrowed back those of the
  second.
- A NodePool that a killed run has left narrowed would stay so. A placeholder ends with its run; nothing is put back.
- Users' pods may use whatever the pool allows while a run climbs.

Karpenter makes the NodeClaim of a pod from the NodePool's requirements and the pod's (``ToNodeClaim`` in
``pkg/controllers/provisioning/scheduling/nodeclaimtemplate.go``), so a claim shows by its requirements for whom it was
made: only placeholders name the label ``gpu-fleet.io/standing``. All expressions are in one term: of several terms
Karpenter drops the first when it cannot satisfy it (``preferences.go`` there, ``removeRequiredNodeAffinityTerm``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.aws.costs import Price, PriceList
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_RUNG,
    LABEL_CAPACITY_TYPE,
    LABEL_INSTANCE_TYPE,
    LABEL_STANDING,
    LABEL_ZONE,
    short_hash,
)
from gpu_fleet.core.kubernetes.objects import Object, PoolClaim, annotations_of, deleting, finished, node_of

if TYPE_CHECKING:
    from gpu_fleet.core.kubernetes.objects import PoolNode
    from gpu_fleet.core.spec import NodePool


@dataclass(frozen=True)
class Step:
    """One rung of a pool's ladder, with all that it leaves to choose from.

    :ivar number: from 1, as people count.
    :ivar of: how many rungs there are.
    :ivar zones: empty: any.
    :ivar seconds: how long it is tried; ``None``: until the deadline of the wait.
    """

    number: int
    of: int
    instance_types: tuple[str, ...]
    capacity_types: tuple[str, ...]
    zones: tuple[str, ...]
    seconds: int | None

    def __str__(self) -> str:
        where = f" in {', '.join(self.zones)}" if self.zones else ""
        return f"{', '.join(self.instance_types)} {' or '.join(self.capacity_types)}{where}"

    @property
    def digest(self) -> str:
        """What placeholders of this rung are known by: the same for the same narrowing, whatever its number."""
        return short_hash(*sorted(self.instance_types), *sorted(self.capacity_types), *sorted(self.zones))

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Label -> the values that a node of this rung may have."""
        zones = {LABEL_ZONE: self.zones} if self.zones else {}
        return {LABEL_INSTANCE_TYPE: self.instance_types, LABEL_CAPACITY_TYPE: self.capacity_types, **zones}

    def expressions(self) -> list[dict[str, Any]]:
        """The ``matchExpressions`` by which a placeholder requires a node of this rung."""
        return [{"key": key, "operator": "In", "values": list(values)} for key, values in self.choices.items()]

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is one of this rung."""
        return all(labels.get(key) in values for key, values in self.choices.items())

    def made(self, claim: Object) -> bool:
        """Whether a NodeClaim can only become a node of this rung."""
        asked = requirements(claim)
        return all(key in asked and set(asked[key]) <= set(values) for key, values in self.choices.items())

    def price(self, prices: PriceList) -> Price:
        """List price of a node: that of the cheapest type, which Karpenter takes if EC2 has it."""
        found = [prices.instance(name, kind) for name in self.instance_types for kind in self.capacity_types]
        known = [price for price in found if price.usd is not None]
        return min(known, key=lambda price: (price.usd or 0.0, not price.at_most)) if known else Price(None)


def steps(pool: NodePool) -> tuple[Step, ...]:
    """The pool's ladder; empty without one."""
    rungs = pool.capacity.ladder
    return tuple(
        Step(
            number=index + 1,
            of=len(rungs),
            instance_types=tuple(rung.instance_types or pool.instance_types),
            capacity_types=tuple(rung.capacity_types or pool.capacity_types),
            zones=tuple(rung.zones),
            seconds=None if rung.time_box is None else int(rung.time_box),
        )
        for index, rung in enumerate(rungs)
    )


def requirements(claim: Object) -> dict[str, list[str]]:
    """Label -> the values that a NodeClaim's requirements admit (operator ``In``)."""
    entries = (claim.get("spec") or {}).get("requirements") or []
    return {
        str(entry.get("key")): [str(value) for value in entry.get("values") or []]
        for entry in entries
        if entry.get("operator") == "In"
    }


def made_for_placeholder(claim: Object) -> bool:
    """Whether Karpenter made a NodeClaim for a placeholder of ours, and not for a pod of somebody else."""
    entries = (claim.get("spec") or {}).get("requirements") or []
    return any(entry.get("key") == LABEL_STANDING for entry in entries)


def is_launched(claim: Object) -> bool:
    """Whether EC2 has given the NodeClaim an instance."""
    waiting = PoolClaim.of(claim).waiting
    return waiting is None or waiting[0] != "Launched"


def asks(pod: Object) -> bool:
    """Whether a placeholder still waits for a node."""
    return not node_of(pod) and not finished(pod) and not deleting(pod)


def of_step(pod: Object, step: Step | None) -> bool:
    """Whether a placeholder asks for this rung (``None``: for no rung)."""
    return annotations_of(pod).get(ANNOTATION_RUNG, "") == (step.digest if step is not None else "")


def surplus(step: Step | None, pods: Iterable[Object], claims: Iterable[Object]) -> list[Object]:
    """The placeholders of other rungs that would make Karpenter buy, so that only this rung does.

    A placeholder whose node is on its way stays: the node is paid for, and would be empty without it. Any placeholder
    of a rung may get any node of it, so they are only counted.

    :param step: the rung that may buy; ``None``: none may, the ladder is at its end.
    """
    waiting = [pod for pod in pods if asks(pod)]
    others = [pod for pod in waiting if step is None or not of_step(pod, step)]
    coming = [claim for claim in claims if not deleting(claim) and made_for_placeholder(claim) and _joins(claim)]
    fitting = [claim for claim in coming if step is not None and step.made(claim)]
    # What this rung's own placeholders do not wait for was bought by an earlier one, of a wider choice perhaps.
    kept = len(coming) - len(fitting) + max(0, len(fitting) - (len(waiting) - len(others)))
    ordered = sorted(others, key=lambda pod: str((pod.get("metadata") or {}).get("name", "")))
    return ordered[kept:]


def _joins(claim: Object) -> bool:
    """Whether a NodeClaim has its instance, and its node takes no pods yet."""
    waiting = PoolClaim.of(claim).waiting
    return waiting is not None and waiting[0] != "Launched"


def strays(step: Step | None, claims: Iterable[Object]) -> list[Object]:
    """NodeClaims without an instance that were made for placeholders of other rungs, also those that are ending."""
    return [
        claim
        for claim in claims
        if made_for_placeholder(claim) and not is_launched(claim) and (step is None or not step.made(claim))
    ]


def lower_nodes(pool: NodePool, nodes: Iterable[PoolNode]) -> list[tuple[PoolNode, Step, Step]]:
    """Nodes that stand on a lower rung: the node, its rung, and the first one."""
    ladder = steps(pool)
    found = []
    for node in nodes:
        labels = {
            LABEL_INSTANCE_TYPE: node.instance_type,
            LABEL_CAPACITY_TYPE: node.capacity_type,
            LABEL_ZONE: node.zone,
        }
        step = next((step for step in ladder if step.admits(labels)), None)
        if step is not None and step.number > 1:
            found.append((node, step, ladder[0]))
    return found


def lower_sentence(pool: str, found: Sequence[tuple[PoolNode, Step, Step]], prices: PriceList) -> str:
    """That nodes stand on a lower rung, and which one is preferred; empty without such nodes."""
    if not found:
        return ""
    first = found[0][2]
    told = [
        f"{node.name} ({node.instance_type} {node.capacity_type}, "
        f"{prices.instance(node.instance_type, node.capacity_type)}, rung {step.number})"
        for node, step, _ in found
    ]
    return (
        f"pool {pool}: {len(told)} node(s) stand on a lower rung: {', '.join(told)}; the first rung is {first} "
        f"({first.price(prices)}): to go back once it has capacity, drain idle ones (gpu_drain with replaceFirst)"
    )
