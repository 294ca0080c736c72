"""Looks up which config entries and taints living nodes carry; one list per kind, nothing is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_fleet.core.kubernetes.kinds import EC2_NODE_CLASS, NODE, NODE_CLAIM, NODE_POOL
from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_PLUGIN_CONFIG
from gpu_fleet.core.manifests.in_use import InUse, in_use
from gpu_fleet.hooks.kubernetes.client import KubeClient

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def observe_in_use(kube: KubeClient, spec: ClusterSpec) -> InUse:
    """What Nodes, NodeClaims and NodePools of the cluster's spec carry now.

    NodePools are read first: a node that is launched meanwhile carries what its pool did, or is seen itself. Without
    Karpenter's CRDs there are no NodePools and NodeClaims.
    """
    pools = kube.list(NODE_POOL)
    classes = kube.list(EC2_NODE_CLASS, label_selector=f"{LABEL_CLUSTER}={spec.name}")
    # All claims: one without the config label may have this package's taints.
    claims = kube.list(NODE_CLAIM)
    nodes = kube.list(NODE, label_selector=LABEL_PLUGIN_CONFIG)
    return in_use(spec, nodes=nodes, claims=claims, node_pools=pools, node_classes=classes)
