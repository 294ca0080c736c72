"""Replacing drifted nodes on request, once their replacements are proven: which nodes, and when. Pure.

First the run requests as many additional nodes as the pool would lack without the drifted ones, within
``limits.nodes``; it waits for them and validates them like all others. Only then is a drifted node removed, if it is
still idle and as many proven nodes as the spec wants stay without it. So a run that is interrupted at any point leaves
at worst one node too many.

Only idle nodes are chosen at present. A strategy for busy nodes would be another :data:`Chooser`; everything after the
choice is the same, except that the node has to be drained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY
from gpu_fleet.core.kubernetes.objects import Object, PoolNode, annotations_of
from gpu_fleet.core.nodes.drifted import DriftedNode, holds


class Mode(StrEnum):
    """The run's Param ``replaceDrifted``."""

    NONE = "none"
    IDLE = "idle"


class Why(StrEnum):
    """Why a drifted node stays."""

    IN_USE = "InUse"  # a user's pod holds a GPU there, or asks not to be disrupted
    TURN_LATER = "TurnLater"  # the run has replaced as many as it may
    NO_ROOM = "NoRoom"  # limits.nodes leaves no room for the node that has to be launched first
    NOT_PROVEN = "NotProven"  # too few proven nodes would stay
    OUT_OF_SERVICE = "OutOfService"  # cordoned or quarantined, by a person or another controller
    GONE = "Gone"


@dataclass(frozen=True)
class Left:
    node: str
    reason: Why
    message: str

    def to_json(self) -> dict[str, str]:
        return {"node": self.node, "reason": str(self.reason), "message": self.message}


@dataclass(frozen=True)
class Replacement:
    """What a run is to replace in one pool.

    :ivar chosen: the nodes to remove.
    :ivar surge: how many nodes beyond ``wantedNodes`` have to be launched first.
    :ivar existing: all nodes that existed when this was decided.
    """

    chosen: tuple[str, ...] = ()
    surge: int = 0
    existing: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "chosen": list(self.chosen),
            "surge": self.surge,
            "standing": list(self.existing),
            "left": [item.to_json() for item in self.left],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Replacement:
        return cls(
            tuple(map(str, value.get("chosen") or ())),
            int(value.get("surge") or 0),
            tuple(map(str, value.get("standing") or ())),
            tuple(
                Left(str(item["node"]), Why(item["reason"]), str(item["message"])) for item in value.get("left") or ()
            ),
        )


#: Which of a pool's drifted nodes may be removed, and why the others stay.
Chooser = Callable[[Sequence[DriftedNode], Mapping[str, PoolNode]], tuple[list[str], list[Left]]]


def idle_ones(drifted: Sequence[DriftedNode], nodes: Mapping[str, PoolNode]) -> tuple[list[str], list[Left]]:
    """The nodes on which no user's pod holds a GPU; in the order in which they drifted."""
    chosen, left = [], []
    for each in sorted(drifted, key=lambda each: (each.since or "~", each.node)):
        node = nodes.get(each.node)
        if node is None:
            continue  # it has not joined yet, or is being removed
        if node.quarantined or node.cordoned:
            left.append(Left(each.node, Why.OUT_OF_SERVICE, "cordoned or quarantined by a person or controller"))
        elif not each.idle:
            left.append(Left(each.node, Why.IN_USE, in_use(each)))
        else:
            chosen.append(each.node)
    return chosen, left


CHOOSERS: dict[Mode, Chooser] = {Mode.IDLE: idle_ones}


def in_use(node: DriftedNode) -> str:
    """Why a node that is in use stays, in words."""
    if node.pods:
        return holds(node.pods)
    return f"pods there ask not to be disrupted: {', '.join(node.protected[:5])}"


def choose(
    mode: Mode,
    drifted: Sequence[DriftedNode],
    nodes: Iterable[PoolNode],
    *,
    wanted: int,
    at_once: int,
    cap: int,
    present: int,
    coming: int = 0,
    counts: Callable[[PoolNode], bool],
) -> Replacement:
    """Which nodes to replace, and how many have to be launched first. Total; the same state gives the same answer.

    :param nodes: the pool's nodes that are not being removed.
    :param wanted: ``wantedNodes``.
    :param at_once: maximum number of nodes that one run replaces.
    :param cap: ``limits.nodes``.
    :param present: how many NodeClaims the pool has, also launching and terminating ones: all count for the cap.
    :param coming: how many of them have no node yet and will bring a wanted node.
    :param counts: whether a node is one of the wanted ones; a node of another template is not.
    """
    by_name = {node.name: node for node in nodes}
    chooser = CHOOSERS.get(mode)
    if chooser is None:
        return Replacement(existing=tuple(sorted(by_name)))
    candidates, left = chooser(drifted, by_name)
    counting = {name for name, node in by_name.items() if counts(node)}
    lacking = max(0, wanted - len(counting))  # asked for in any case
    unasked = max(0, lacking - coming)
    room = max(0, cap - present - unasked)
    chosen: list[str] = []
    surge = 0
    if unasked and present + unasked > cap:
        # There is no room for the wanted nodes themselves, so no replacement can be launched before a node is removed.
        words = f"limits.nodes {cap} leaves no place for the {unasked} wanted node(s) that have to be proven before"
        return Replacement((), 0, tuple(sorted(by_name)), (*left, *(Left(n, Why.NO_ROOM, words) for n in candidates)))
    for name in candidates:
        if len(chosen) == at_once:
            words = f"this run replaces {at_once} node(s) of the pool (disruption.replaceAtOnce); the next continues"
            left.append(Left(name, Why.TURN_LATER, words))
            continue
        stay = len(counting - {*chosen, name})
        needed = max(0, wanted - stay) - lacking
        if needed > room:
            words = f"limits.nodes {cap} leaves no place for a node that could come first; raise it to {cap + needed}"
            left.append(Left(name, Why.NO_ROOM, words))
            continue
        chosen.append(name)
        surge = max(surge, needed)
    return Replacement(tuple(chosen), surge, tuple(sorted(by_name)), tuple(left))


def removable(chosen: Sequence[str], serving: Collection[str], wanted: int) -> tuple[list[str], list[Left]]:
    """Which of the chosen nodes may be removed now: as many serving nodes as wanted have to stay.

    :param serving: nodes that count as capacity and have passed in this run, or are in use.
    """
    go: list[str] = []
    left: list[Left] = []
    for name in chosen:
        stay = set(serving) - {*go, name}
        if len(stay) < wanted:
            words = f"without it {len(stay)} of {wanted} wanted node(s) would be proven: its replacement is missing"
            left.append(Left(name, Why.NOT_PROVEN, words))
        else:
            go.append(name)
    return go, left


# --- nodes -----------------------------------------------------------------------------------------------------------


def cordon(node: Object, run: str) -> dict[str, Any] | None:
    """The merge patch that takes a node out of service before it is looked at again; ``None`` if it is cordoned.

    It is marked like the cordon of a drain, so that the next run that requests capacity undoes it if this one dies.
    """
    metadata, spec = node.get("metadata") or {}, node.get("spec") or {}
    if spec.get("unschedulable"):
        return None
    return {
        "metadata": {
            "resourceVersion": metadata.get("resourceVersion"),
            "annotations": {ANNOTATION_CORDONED_BY: run},
        },
        "spec": {"unschedulable": True},
    }


def cordoned_by(node: Object, run: str) -> bool:
    """Whether that run has cordoned the node."""
    return bool((node.get("spec") or {}).get("unschedulable")) and (
        annotations_of(node).get(ANNOTATION_CORDONED_BY) == run
    )


def uncordon() -> dict[str, Any]:
    return {"metadata": {"annotations": {ANNOTATION_CORDONED_BY: None}}, "spec": {"unschedulable": None}}
