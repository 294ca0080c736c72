"""The mark on a node that EC2 is going to take, and the first aid that it gets with it: the cordon.

The mark is the annotation ``gpu-fleet.io/interruption``, JSON. Messages come more than once and in any order, and two
triggerers may read at the same time, so what is written follows from the node alone: a notice that says no more than
the mark changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.interruptions.messages import URGENCY, Kind, Notice
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY, ANNOTATION_INTERRUPTION, CORDONED_FOR
from gpu_fleet.core.kubernetes.objects import annotations_of

Object = Mapping[str, Any]

#: Kinds for which a node is cordoned as soon as the message is read. Not: a scheduled change, which may be days ahead,
#: and a rebalance recommendation, which may never become true; the DAG cordons for those when it is time.
CORDONS = frozenset({Kind.SPOT, Kind.RESERVATION, Kind.STOPPING, Kind.TERMINATING})

_RANK = {kind: rank for rank, kind in enumerate(URGENCY)}


@dataclass(frozen=True)
class Mark:
    """What a node's annotation says.

    :ivar seen: when this package read the message, epoch seconds.
    """

    notice: Notice
    seen: float

    def text(self) -> str:
        """The annotation's value."""
        return json.dumps({**self.notice.to_json(), "seen": round(self.seen, 3)}, separators=(",", ":"))

    @classmethod
    def of(cls, node: Object) -> Mark | None:
        """A node's mark; ``None`` without one, and where a person has made it unreadable."""
        text = annotations_of(node).get(ANNOTATION_INTERRUPTION)
        try:
            value = json.loads(text) if text else None
            return cls(Notice.from_json(value), float(value["seen"])) if isinstance(value, dict) else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


@dataclass(frozen=True)
class FirstAid:
    """What is written to a node: these annotations, and whether it becomes unschedulable."""

    annotations: Mapping[str, str]
    cordon: bool


def outranks(notice: Notice, known: Notice) -> bool:
    """Whether a notice says more than what is known of the same instance: a more urgent kind, or an earlier end."""
    if notice.kind is not known.kind:
        return _RANK[notice.kind] < _RANK[known.kind]
    if notice.deadline is None:
        return False
    return known.deadline is None or notice.deadline < known.deadline


def is_heeded(notice: Notice, rebalance: str) -> bool:
    """Whether the notice causes anything at all.

    :param rebalance: ``interruptions.rebalance`` of the cluster file.
    """
    return notice.kind is not Kind.REBALANCE or rebalance != "ignore"


def first_aid(node: Object, notice: Notice, *, seen: float) -> FirstAid | None:
    """What has to be written; ``None`` if the node carries it already.

    A cordon of somebody else stays theirs. That of a run of ours is taken over: the run would uncordon the node at its
    end. A node that a person has uncordoned is not cordoned again by a copy of the same notice.

    :param seen: when the message was read, epoch seconds.
    """
    known = Mark.of(node)
    if known is not None and known.notice.instance == notice.instance and not outranks(notice, known.notice):
        return None
    annotations = {ANNOTATION_INTERRUPTION: Mark(notice, seen).text()}
    if notice.kind not in CORDONS:
        return FirstAid(annotations, cordon=False)
    by = annotations_of(node).get(ANNOTATION_CORDONED_BY)
    if is_cordoned(node) and (by is None or by.startswith(CORDONED_FOR)):
        return FirstAid(annotations, cordon=False)
    annotations[ANNOTATION_CORDONED_BY] = cordon_value(notice)
    return FirstAid(annotations, cordon=True)


def cordon_value(notice: Notice) -> str:
    """The value of ``gpu-fleet.io/cordoned-by`` for a notice; the same for all its copies."""
    return f"{CORDONED_FOR}{notice.event or notice.instance}"


def is_cordoned(node: Object) -> bool:
    return bool((node.get("spec") or {}).get("unschedulable"))


def is_ours(node: Object) -> bool:
    """Whether the node is cordoned for an interruption, by this package."""
    return is_cordoned(node) and annotations_of(node).get(ANNOTATION_CORDONED_BY, "").startswith(CORDONED_FOR)


def taken_back(node: Object) -> dict[str, Any] | None:
    """The merge patch that removes the mark and a cordon of ours; ``None`` if there is neither.

    For a drain that was called off, or a danger that has passed. A cordon of others stays.
    """
    found = annotations_of(node)
    gone: dict[str, None] = {ANNOTATION_INTERRUPTION: None} if ANNOTATION_INTERRUPTION in found else {}
    if found.get(ANNOTATION_CORDONED_BY, "").startswith(CORDONED_FOR):
        gone[ANNOTATION_CORDONED_BY] = None
    if not gone:
        return None
    metadata = {"resourceVersion": (node.get("metadata") or {}).get("resourceVersion"), "annotations": gone}
    return {"metadata": metadata, **({"spec": {"unschedulable": None}} if is_ours(node) else {})}
