"""What runs leave on nodes, and taking it back: protection from Karpenter, and cordons.

Karpenter does not disrupt a node with the annotation ``karpenter.sh/do-not-disrupt``; a second annotation names the
run that set it. A cordon of a drain carries the annotation ``gpu-fleet.io/cordoned-by``. So does one for an
interruption notice, with a value that names no run: it is not a run's to take back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Conflict, NotFound, TransientError
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_CORDONED_BY,
    ANNOTATION_DO_NOT_DISRUPT,
    ANNOTATION_PROTECTED_BY,
    ANNOTATION_QUARANTINED,
    LABEL_NODE_POOL,
)
from gpu_fleet.core.nodes.freeze import evicted_for
from gpu_fleet.core.nodes.left_behind import cordoned_by_a_run, cordoned_by_another, patch_of

if TYPE_CHECKING:
    from gpu_fleet.core.kubernetes.objects import PoolNode
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


#: Attempts of one patch; a node is written by its kubelet all the time, its taints only now and then.
SWAPS = 5


def swap_node(kube: KubeClient, name: str, body_of: Callable[[Mapping[str, Any]], dict[str, Any] | None]) -> bool:
    """Read a node, and patch it unless it was changed in between; ``False`` if there was nothing to change.

    :param body_of: the node -> a merge patch with the version that it is about; ``None``: nothing to change.
    :raises TransientError: it changed each time.
    """
    ref = ObjectRef(NODE, name)
    for _ in range(SWAPS):
        node = kube.get(ref)
        body = body_of(node) if node is not None else None
        if body is None:
            return False
        try:
            kube.patch(ref, body)
        except NotFound:
            return False
        except Conflict:
            continue
        return True
    raise TransientError(f"{ref} changed {SWAPS} times while it was being patched; the task will be retried")


# --- protection ------------------------------------------------------------------------------------------------------
def protect_nodes(kube: KubeClient, nodes: Iterable[PoolNode], run: str) -> list[str]:
    """Keep Karpenter from removing nodes; returns the names of those that this run now protects.

    A node that others protect already is left as it is, and keeps their protection when ours is taken back.
    """
    protected = []
    for node in nodes:
        if ANNOTATION_DO_NOT_DISRUPT in node.annotations and ANNOTATION_PROTECTED_BY not in node.annotations:
            continue
        if node.annotations.get(ANNOTATION_PROTECTED_BY) != run:
            annotations = {ANNOTATION_DO_NOT_DISRUPT: "true", ANNOTATION_PROTECTED_BY: run}
            try:
                kube.patch(ObjectRef(NODE, node.name), {"metadata": {"annotations": annotations}})
            except NotFound:
                continue
        protected.append(node.name)
    return protected


def unprotect_nodes(kube: KubeClient, selector: str) -> list[str]:
    """Take back the protection that this package set; protection by others stays. Returns the nodes' names."""
    names = []
    for node in kube.list(NODE, label_selector=selector):
        metadata = node["metadata"]
        if ANNOTATION_PROTECTED_BY in (metadata.get("annotations") or {}):
            body = {"metadata": {"annotations": {ANNOTATION_DO_NOT_DISRUPT: None, ANNOTATION_PROTECTED_BY: None}}}
            try:
                kube.patch(ObjectRef(NODE, metadata["name"]), body)
            except NotFound:
                continue
            names.append(metadata["name"])
    return names


# --- cordons ---------------------------------------------------------------------------------------------------------
def take_back_cordons(kube: KubeClient, nodes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Uncordon the nodes that an unfinished drain of ours cordoned; a cordon by others, or for an interruption, stays.

    :returns: the nodes as they are afterwards, without those that no longer exist.
    """
    now = []
    for node in nodes:
        metadata = node["metadata"]
        if not cordoned_by_a_run(node) or metadata.get("deletionTimestamp"):
            now.append(node)
            continue
        body: dict[str, Any] = {"metadata": {"annotations": {ANNOTATION_CORDONED_BY: None}}}
        if ANNOTATION_QUARANTINED not in metadata["annotations"]:
            body["spec"] = {"unschedulable": None}
        try:
            now.append(kube.patch(ObjectRef(NODE, metadata["name"]), body))
        except NotFound:
            continue
    return now


def take_back_own_cordons(kube: KubeClient, nodes: Iterable[dict[str, Any]]) -> list[str]:
    """Uncordon the nodes that a run of ours cordoned, also a dead one; returns their names."""
    mine = [node for node in nodes if cordoned_by_a_run(node) and not node["metadata"].get("deletionTimestamp")]
    return sorted(node["metadata"]["name"] for node in take_back_cordons(kube, mine))


# --- both, of finished runs ------------------------------------------------------------------------------------------
def take_back_left_behind(kube: KubeClient, run: str) -> list[str]:
    """Take back protection and cordons of finished runs on any node of the cluster; the caller holds the cluster lock.

    :returns: the names of the nodes from which something was taken back.
    """
    nodes = kube.list(NODE, label_selector=LABEL_NODE_POOL)
    closed = _closed_pools(kube) if any(cordoned_by_another(node, run) for node in nodes) else set()
    freed = []
    for node in nodes:
        body = patch_of(node, run, closed)
        if body is None:
            continue
        # Only the version that was looked at: nodes change all the time, and a person may have cordoned it since.
        body["metadata"]["resourceVersion"] = node["metadata"]["resourceVersion"]
        try:
            kube.patch(ObjectRef(NODE, node["metadata"]["name"]), body)
        except (NotFound, Conflict):
            continue  # It is gone, or the next run looks at it.
        freed.append(str(node["metadata"]["name"]))
    return freed


def _closed_pools(kube: KubeClient) -> set[str]:
    """The NodePools from whose nodes a teardown has evicted pods, or that are being deleted."""
    try:
        pools = kube.list(NODE_POOL)
    except NotFound:
        return set()  # Karpenter's CRDs are gone, and with them every NodePool.
    return {
        str(pool["metadata"]["name"])
        for pool in pools
        if evicted_for(pool) is not None or pool["metadata"].get("deletionTimestamp")
    }
