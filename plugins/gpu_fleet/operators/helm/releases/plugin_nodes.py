"""The labels by which our device plugin, and jobs, find the pools' nodes, on nodes that are older than the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_fleet.core.errors import NotFound
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    BUILT_IN,
    LABEL_CLUSTER,
    LABEL_DEVICE_PLUGIN,
    LABEL_NODE_POOL,
    LABEL_POOL,
    SERVED,
)

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


def label_nodes(kube: KubeClient, spec: ClusterSpec) -> list[str]:
    """Give the nodes of our NodePools the labels, also of those that the file no longer has; returns their names.

    Karpenter copies a template's labels only to nodes that it launches. Without this, an upgrade from a version that
    selected by ``nvidia.com/gpu.present`` would remove the plugin, and with it the GPUs, from every existing node, and
    a job that names its pool would find none of them. Nodes whose AMI has a plugin get the label that keeps ours off.
    """
    pools = {pool.name for pool in spec.node_pools if pool.manage}
    built_in = {pool.name for pool in spec.node_pools if pool.built_in_plugin}
    kept = kube.list_metadata(NODE_POOL, label_selector=f"{LABEL_CLUSTER}={spec.name}")
    pools |= {str(item["metadata"]["name"]) for item in kept}
    if not pools:
        return []
    names = []
    for node in kube.list_metadata(NODE, label_selector=f"{LABEL_NODE_POOL} in ({','.join(sorted(pools))})"):
        name, labels = str(node["metadata"]["name"]), node["metadata"].get("labels") or {}
        served = (
            BUILT_IN if labels[LABEL_NODE_POOL] in built_in or labels.get(LABEL_DEVICE_PLUGIN) == BUILT_IN else SERVED
        )
        wanted = {LABEL_DEVICE_PLUGIN: served, LABEL_POOL: labels[LABEL_NODE_POOL]}
        missing = {key: value for key, value in wanted.items() if labels.get(key) != value}
        if not missing:
            continue
        try:
            kube.patch(ObjectRef(NODE, name), {"metadata": {"labels": missing}})
        except NotFound:
            continue
        names.append(name)
    return names
