"""What finished runs left on nodes: their protection against Karpenter, and the cordons of drains that never ended.

The run that decides this holds the cluster lock, so every other run whose name a node carries is over. A pool's own
clean-up handles only the nodes of its pool; these may belong to a pool that is no longer in any cluster file.

A cordon because of an interruption notice is no run's: its node is about to lose its instance, whichever runs are over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_CORDONED_BY,
    ANNOTATION_DO_NOT_DISRUPT,
    ANNOTATION_PROTECTED_BY,
    ANNOTATION_QUARANTINED,
    CORDONED_FOR,
    LABEL_NODE_POOL,
)
from gpu_fleet.core.kubernetes.objects import deleting

Json = dict[str, Any]


def _annotations(node: Mapping[str, Any]) -> Mapping[str, str]:
    return node["metadata"].get("annotations") or {}


def cordoned_by_a_run(node: Mapping[str, Any]) -> bool:
    """Whether a run of ours cordoned the node, also a dead one."""
    by = _annotations(node).get(ANNOTATION_CORDONED_BY)
    return by is not None and not by.startswith(CORDONED_FOR)


def cordoned_by_another(node: Mapping[str, Any], run: str) -> bool:
    """Whether a drain of a run that is over cordoned the node."""
    return cordoned_by_a_run(node) and _annotations(node)[ANNOTATION_CORDONED_BY] != run


def patch_of(node: Mapping[str, Any], run: str, closed_pools: Collection[str]) -> Json | None:
    """The merge patch that takes back what finished runs left on a node; ``None`` if there is nothing.

    A cordon stays on a node that is being deleted, and where the NodePool is closed for a teardown that has evicted
    pods: those pods would be scheduled to an uncordoned node, and evicted again. A quarantined node stays cordoned.

    :param run: the run that holds the cluster lock.
    :param closed_pools: names of NodePools that a teardown keeps closed.
    """
    metadata, annotations = node["metadata"], _annotations(node)
    if deleting(node):
        return None
    gone: Json = {}
    body: Json = {}
    if annotations.get(ANNOTATION_PROTECTED_BY, run) != run:
        gone |= {ANNOTATION_DO_NOT_DISRUPT: None, ANNOTATION_PROTECTED_BY: None}
    pool = (metadata.get("labels") or {}).get(LABEL_NODE_POOL)
    if cordoned_by_another(node, run) and pool not in closed_pools:
        gone[ANNOTATION_CORDONED_BY] = None
        if ANNOTATION_QUARANTINED not in annotations:
            body["spec"] = {"unschedulable": None}
    return {"metadata": {"annotations": gone}, **body} if gone else None
