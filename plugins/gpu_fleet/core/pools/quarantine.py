"""Quarantine of a node: its mark, the patches that put it on and take it off, and who still uses the node. Pure.

A quarantined node is cordoned, tainted with the reason, and annotated with what happened; the annotation alone says
that the quarantine is ours. Pods that run there continue to run: a cordon moves no pod. Probes tolerate both, so that
the node is looked at again, and released when it passes the probe that it had failed, or all others if that probe no
longer exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.do_not_disrupt import protected_value
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY, ANNOTATION_QUARANTINED, TAINT_QUARANTINED
from gpu_fleet.core.kubernetes.objects import (
    Object,
    annotations_of,
    deleting,
    finished,
    gpus_requested,
    is_ours,
    node_of,
)
from gpu_fleet.core.kubernetes.pod_end import controller_of
from gpu_fleet.core.validation.report import Outcome

#: A taint's value is a label value: at most 63 characters of this alphabet (Kubernetes 'Labels and Selectors').
_NOT_IN_VALUE = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_VALUE = 63
_MAX_MESSAGE = 500


@dataclass(frozen=True)
class Judgement:
    """The result of one node over all probes of a run.

    :ivar reason: with ``message`` and ``probe``, of the first check that failed; empty for a node that passed.
    :ivar passed: the probes that it passed.
    """

    outcome: Outcome
    reason: str = ""
    message: str = ""
    probe: str = ""
    passed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Quarantine:
    """What the annotation of a quarantined node says.

    :ivar probe: the probe that failed; passing it ends the quarantine.
    :ivar run: ``<dag_id>/<run_id>``.
    :ivar at: RFC 3339.
    :ivar cordoned: whether the cordon is ours; one that existed before stays.
    """

    reason: str
    message: str
    probe: str
    run: str
    at: str
    cordoned: bool = True

    def to_annotation(self) -> str:
        value = {
            "reason": self.reason,
            "message": self.message[:_MAX_MESSAGE],
            "probe": self.probe,
            "run": self.run,
            "at": self.at,
            "cordoned": self.cordoned,
        }
        return json.dumps(value, sort_keys=True)

    @classmethod
    def of(cls, node: Object) -> Quarantine | None:
        """The quarantine of a node; with empty words if its annotation has been damaged; ``None`` without one."""
        text = annotations_of(node).get(ANNOTATION_QUARANTINED)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            value = {}
        words = {key: str(value.get(key, "")) for key in ("reason", "message", "probe", "run", "at")}
        return cls(**words, cordoned=value.get("cordoned") is not False)


def quarantined(node: Object, found: Judgement, *, run: str, at: str) -> dict[str, Any] | None:
    """The merge patch that quarantines a node; ``None`` if it is quarantined already.

    It carries the version that was read: taints are one list, which other controllers write as well.
    """
    metadata, spec = node.get("metadata") or {}, node.get("spec") or {}
    before = Quarantine.of(node)
    taints = list(spec.get("taints") or [])
    tainted = any(taint.get("key") == TAINT_QUARANTINED for taint in taints)
    if before is not None and tainted and spec.get("unschedulable"):
        return None
    if not tainted:
        taints.append({"key": TAINT_QUARANTINED, "value": taint_value(found.reason), "effect": "NoSchedule"})
    cordoned = before.cordoned if before is not None else not spec.get("unschedulable")
    if before is not None and before.run:  # a part of it was removed; the quarantine is still that run's
        run, at = before.run, before.at
    mine = Quarantine(found.reason, found.message, found.probe, run, at, cordoned=cordoned)
    return {
        "metadata": {
            "resourceVersion": metadata.get("resourceVersion"),
            "annotations": {ANNOTATION_QUARANTINED: mine.to_annotation()},
        },
        "spec": {"unschedulable": True, "taints": taints},
    }


def released(node: Object) -> dict[str, Any] | None:
    """The merge patch that ends our quarantine; ``None`` if there is none.

    A cordon that existed before it, or that a drain has put on since, stays.
    """
    before = Quarantine.of(node)
    if before is None:
        return None
    metadata, spec = node.get("metadata") or {}, node.get("spec") or {}
    taints = [taint for taint in spec.get("taints") or [] if taint.get("key") != TAINT_QUARANTINED]
    body: dict[str, Any] = {
        "metadata": {
            "resourceVersion": metadata.get("resourceVersion"),
            "annotations": {ANNOTATION_QUARANTINED: None},
        },
        "spec": {"taints": taints or None},
    }
    if before.cordoned and ANNOTATION_CORDONED_BY not in annotations_of(node):
        body["spec"]["unschedulable"] = None
    return body


def taint_value(reason: str) -> str:
    """A reason as a taint's value."""
    return _NOT_IN_VALUE.sub("", reason)[:_MAX_VALUE].strip("_.-")


def users_of(pods: Iterable[Object], node: str) -> list[str]:
    """``namespace/name`` of the pods that keep a node from being replaced.

    Users' pods that hold a GPU, and those that ask not to be disrupted. Not our own, and not those of DaemonSets, which
    are recreated on every node.
    """
    found = []
    for pod in pods:
        if node_of(pod) != node or finished(pod) or is_ours(pod):
            continue
        owner = controller_of(pod)
        if owner is not None and owner.get("kind") == "DaemonSet":
            continue
        if gpus_requested(pod) or protected_value(pod) is not None:
            metadata = pod.get("metadata") or {}
            found.append(f"{metadata.get('namespace')}/{metadata.get('name')}")
    return sorted(found)


def claim_of(claims: Iterable[Object], node: str) -> Object | None:
    """The NodeClaim of a node, also one that is being deleted."""
    named = [claim for claim in claims if (claim.get("status") or {}).get("nodeName") == node]
    return next((claim for claim in named if not deleting(claim)), next(iter(named), None))
