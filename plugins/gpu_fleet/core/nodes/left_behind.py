"""What finished runs left on nodes: their protection against Karpenter, and the cordons of drains that never ended.

Decided by whoever holds the cluster's turn, and so while no other run is at work: what carries another run's name then
is of a run that is over. A pool's own clean-up looks at the nodes of its pool; these may be of a pool that no cluster
file names any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_CORDONED_BY,
    ANNOTATION_DO_NOT_DISRUPT,
    ANNOTATION_PROTECTED_BY,
    ANNOTATION_QUARANTINED,
    LABEL_NODE_POOL,
)
from gpu_fleet.core.kubernetes.objects import deleting

Json = dict[str, Any]


def _annotations(node: Mapping[str, Any]) -> Mapping[str, str]:
    return node["metadata"].get("annotations") or {}


def cordoned_by_another(node: Mapping[str, Any], run: str) -> bool:
    """Whether a drain of a run that is over cordoned the node."""
    return _annotations(node).get(ANNOTATION_CORDONED_BY, run) != run


def patch_of(node: Mapping[str, Any], run: str, closed_pools: Collection[str]) -> Json | None:
    """The merge patch that takes back what finished runs left on a node; ``None`` if there is nothing.

    A cordon stays on a node that is going, and where its NodePool is closed for a teardown that has evicted pods: an
    open node would be taken by those pods, and drained again. A quarantine keeps the node cordoned.

    :param run: the run that holds the turn. :param closed_pools: names of NodePools that a teardown keeps closed.
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
