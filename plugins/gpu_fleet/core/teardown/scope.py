"""What a teardown removes and what it keeps: the boundary that the plan, the drains and the leak check share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_NODE_POOL
from gpu_fleet.core.manifests.overlays import of_cluster
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.remains import left_classes, living_pools

Json = dict[str, Any]


@dataclass(frozen=True)
class Observed:
    """What the plan is made from, as plain JSON dictionaries.

    :ivar node_classes: read only where Karpenter is to be uninstalled.
    :ivar node_overlays: the same.
    :ivar nodes: all nodes of the cluster, including those of others.
    :ivar pods: those on Karpenter's nodes, and those that name the RuntimeClass.
    :ivar workloads: DaemonSets, Deployments, ReplicaSets, StatefulSets, Jobs and CronJobs, with their ``kind``.
    :ivar budgets: the PodDisruptionBudgets.
    :ivar node_groups: EKS managed node groups (``DescribeNodegroup``); ``None`` without permission to list them.
    :ivar volumes: the EBS volumes attached to the instances (``DescribeVolumes``).
    :ivar persistent_volumes: PersistentVolumes, for the names of those volumes.
    :ivar now: epoch seconds, ``None`` if it does not matter.
    """

    node_pools: Sequence[Json] = ()
    node_classes: Sequence[Json] = ()
    node_overlays: Sequence[Json] = ()
    node_claims: Sequence[Json] = ()
    nodes: Sequence[Json] = ()
    pods: Sequence[Json] = ()
    instances: Sequence[Json] = ()
    release_secrets: Sequence[Json] = ()
    karpenter_pods: Sequence[Json] = ()
    workloads: Sequence[Json] = ()
    budgets: Sequence[Json] = ()
    node_groups: Sequence[Json] | None = ()
    volumes: Sequence[Json] = ()
    persistent_volumes: Sequence[Json] = ()
    now: float | None = None


def doomed_pools(spec: ClusterSpec, node_pools: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the existing NodePools that this teardown removes.

    Those of the spec with ``manage: true``, and those with our label that the spec no longer has.
    """
    kept = {pool.name for pool in spec.node_pools if not pool.manage}
    ours = {pool.name for pool in spec.node_pools if pool.manage}
    names = []
    for pool in node_pools:
        name = pool["metadata"]["name"]
        labelled = (pool["metadata"].get("labels") or {}).get(LABEL_CLUSTER) == spec.name
        if name not in kept and (name in ours or labelled):
            names.append(name)
    return sorted(names)


def going_elsewhere(spec: ClusterSpec, node_pools: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Names of the NodePools that are being deleted and that this teardown does not remove.

    They belong to other teams, or have ``manage: false`` in the file: while Karpenter lives, it removes what belongs to
    them on behalf of whoever deleted them.
    """
    pools = list(node_pools)
    return frozenset(pool["metadata"]["name"] for pool in pools) - living_pools(pools) - set(doomed_pools(spec, pools))


def pool_of(item: Mapping[str, Any]) -> str | None:
    """The NodePool that a NodeClaim or a node belongs to."""
    name: str | None = (item["metadata"].get("labels") or {}).get(LABEL_NODE_POOL)
    return name


def orphans_go(spec: ClusterSpec) -> bool:
    """Whether NodeClaims without a NodePool are removed as well: if Karpenter is, because nothing else removes them."""
    return spec.karpenter.manage and spec.teardown.uninstall_karpenter


def needs_karpenter(spec: ClusterSpec, observed: Observed) -> dict[str, list[str]]:
    """What remains that needs Karpenter although it is to be uninstalled: kind, in the plural, to names. Empty where
    Karpenter is kept.

    Without it nothing terminates the nodes of such a NodePool or serves the finalizer of such an EC2NodeClass, even one
    that is being deleted; and the CRDs, which are deleted after the controller, must have no objects left.
    """
    if not orphans_go(spec):
        return {}
    pools = living_pools(observed.node_pools) - set(doomed_pools(spec, observed.node_pools))
    ours = {item["metadata"]["name"] for item in left_classes(observed.node_classes, spec.name, ())}
    classes = {item["metadata"]["name"] for item in observed.node_classes} - ours
    ours = set(of_cluster(observed.node_overlays, spec.name))
    overlays = {item["metadata"]["name"] for item in observed.node_overlays} - ours
    found = {"NodePools": pools, "EC2NodeClasses": classes, "NodeOverlays": overlays}
    return {kind: sorted(names) for kind, names in found.items() if names}


def doomed_claims(
    spec: ClusterSpec, claims: Iterable[Mapping[str, Any]], doomed: Iterable[str], existing: Iterable[str]
) -> list[str]:
    """Names of the NodeClaims that a teardown removes.

    Those of the doomed pools, including those created by hand (a foreground deletion misses them, as they have no
    ownerReference). Where the package also uninstalls Karpenter, those of no existing pool, too: nothing else would
    remove them.
    """
    existing = set(existing)
    # By name, not only by what exists: an earlier try may have removed the pool and left the claim.
    doomed = set(doomed) | ({pool.name for pool in spec.node_pools if pool.manage} - existing)
    every_orphan = orphans_go(spec)
    return sorted(
        claim["metadata"]["name"]
        for claim in claims
        if pool_of(claim) in doomed or (every_orphan and pool_of(claim) not in existing)
    )


def doomed_nodes(spec: ClusterSpec, observed: Observed) -> list[str]:
    """Names of the nodes that a teardown removes: those whose NodePool is removed, is gone, or never existed."""
    living = living_pools(observed.node_pools) - set(doomed_pools(spec, observed.node_pools))
    return sorted(node["metadata"]["name"] for node in observed.nodes if pool_of(node) and pool_of(node) not in living)
