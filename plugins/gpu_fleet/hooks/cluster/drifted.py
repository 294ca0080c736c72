"""Looks for drifted nodes and what they were launched from; writes only its own record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, EC2_NODE_CLASS, NODE_CLAIM, NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL, SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import labels_of, name_of
from gpu_fleet.core.nodes.drifted import DriftedNode, drifted_nodes
from gpu_fleet.core.nodes.records import CONFIG_MAP_NAME, Record, config_map, records_of, remembered
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.cluster.pods import pods_on
from gpu_fleet.hooks.kubernetes.client import KubeClient

#: One for all pools; each pool's task writes its own key.
RECORD = ObjectRef(CONFIG_MAP, CONFIG_MAP_NAME, SYSTEM_NAMESPACE)


@dataclass(frozen=True)
class NodesSeen:
    """The objects of the spec's own pools; all empty on a cluster without Karpenter.

    :ivar pods: the pods on the NodeClaims' nodes, and those that are nominated to them.
    """

    claims: list[dict[str, Any]] = field(default_factory=list)
    pods: list[dict[str, Any]] = field(default_factory=list)
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)

    def drifted(self) -> list[DriftedNode]:
        return drifted_nodes(self.claims, self.pods, self.pools, self.classes, self.records)


def own_pools(spec: ClusterSpec) -> list[str]:
    """The pools whose drifted nodes are named: not those that another team manages."""
    return [pool.name for pool in spec.node_pools if pool.manage]


def look_at_nodes(kube: KubeClient, pools: Iterable[str]) -> NodesSeen:
    """Everything about the nodes of these pools.

    :raises GpuFleetError: if something could not be read.
    """
    wanted = set(pools)
    claims = [
        claim
        for claim in kube.list(NODE_CLAIM, label_selector=LABEL_NODE_POOL)
        if labels_of(claim).get(LABEL_NODE_POOL) in wanted
    ]
    found = {name_of(item): item for item in kube.list(NODE_POOL) if name_of(item) in wanted}
    if not claims:
        return NodesSeen(pools=found)
    return NodesSeen(
        claims=claims,
        pods=pods_on(kube, (str((claim.get("status") or {}).get("nodeName") or "") for claim in claims)),
        pools=found,
        classes={name_of(item): item for item in kube.list(EC2_NODE_CLASS)},
        records=records_of(kube.get(RECORD)),
    )


def remember_class(kube: KubeClient, cluster: str, pool: str) -> bool:
    """Note what the pool's EC2NodeClass is now, so that nodes made of it can be compared later.

    :returns: whether anything was new.
    """
    node_class = kube.get(ObjectRef(EC2_NODE_CLASS, pool))
    if node_class is None:
        return False
    claims = kube.list(NODE_CLAIM, label_selector=f"{LABEL_NODE_POOL}={pool}")
    kept = kube.get(RECORD)
    known = records_of(kept).get(pool, Record())
    now = remembered(known, node_class, claims)
    if now == known:
        return False
    if kept is None:
        # Tasks of several pools may do this at the same time: applying an object without keys removes no key of
        # another.
        kube.apply(config_map(cluster, {}))
    kube.patch(RECORD, {"data": {pool: now.to_text()}})
    return True
