"""Takes back what finished runs left on any node of the cluster, while this run holds the cluster's turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_fleet.core.errors import Conflict, NotFound
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.nodes.freeze import evicted_for
from gpu_fleet.core.nodes.left_behind import cordoned_by_another, patch_of

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


def take_back_left_behind(kube: KubeClient, run: str) -> list[str]:
    """Protection and cordons of runs that are over; the caller has the cluster's turn.

    :returns: the names of the nodes that were freed of something.
    """
    nodes = kube.list(NODE, label_selector=LABEL_NODE_POOL)
    closed = _closed_pools(kube) if any(cordoned_by_another(node, run) for node in nodes) else set()
    freed = []
    for node in nodes:
        body = patch_of(node, run, closed)
        if body is None:
            continue
        # Only the version that was read: a node changes often, and a person's cordon must not be mistaken for ours.
        body["metadata"]["resourceVersion"] = node["metadata"]["resourceVersion"]
        try:
            kube.patch(ObjectRef(NODE, node["metadata"]["name"]), body)
        except (NotFound, Conflict):
            continue  # gone, or the next run looks at it
        freed.append(str(node["metadata"]["name"]))
    return freed


def _closed_pools(kube: KubeClient) -> set[str]:
    """The NodePools from whose nodes a teardown has evicted pods, or that are being deleted."""
    try:
        pools = kube.list(NODE_POOL)
    except NotFound:
        return set()  # Karpenter's CRDs are gone, and with them every NodePool
    return {
        str(pool["metadata"]["name"])
        for pool in pools
        if evicted_for(pool) is not None or pool["metadata"].get("deletionTimestamp")
    }
