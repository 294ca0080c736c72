"""NodeOverlays tell Karpenter how often the GPUs of a shared pool are advertised.

Karpenter counts physical GPUs: without an overlay it buys eight nodes for eight pods that request one share each; with
one it buys as many as they need (kubernetes-sigs/karpenter v1.14.1 pkg/controllers/nodeoverlay; alpha, behind the
feature gate ``NodeOverlay``). Which nodes a pool gets is decided by its own name and instance types, so our overlays do
not affect nodes of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import GPU_RESOURCE, LABEL_CLUSTER, LABEL_INSTANCE_TYPE, LABEL_NODE_POOL
from gpu_fleet.core.spec import ClusterSpec, NodePool

Json = Mapping[str, Any]

#: The greatest weight that the CRD admits: an overlay of others for the same types (for example all of ``g5``) then
#: neither hides ours nor conflicts with it, unless it has this weight, too.
WEIGHT = 10000


def overlaid(spec: ClusterSpec, pool: NodePool) -> bool:
    """Whether a pool has an overlay: it is shared, and we manage both the pool and Karpenter."""
    return spec.karpenter.manage and spec.karpenter.node_overlays and pool.manage and pool.shared


def overlays_used(spec: ClusterSpec) -> bool:
    """Whether Karpenter needs the feature gate."""
    return any(overlaid(spec, pool) for pool in spec.node_pools)


def overlay_name(pool: str) -> str:
    """The name of a pool's NodeOverlay."""
    return f"gpu-fleet-{pool}"


def shares(pool: NodePool, physical: int) -> int:
    """``nvidia.com/gpu`` that a node of the pool advertises.

    :param physical: GPUs per node, according to EC2.
    """
    return physical * pool.replicas


def rivals(overlays: Iterable[Json], pool: NodePool) -> list[str]:
    """Names of overlays of others that conflict with a pool's own: of the same weight, about GPUs, and possibly about
    the pool's nodes.

    Of two overlays of equal weight Karpenter drops one completely, the one whose name comes first in the alphabet; of
    different weights the heavier one wins, and nothing is reported. No other can be heavier than :data:`WEIGHT`.
    """
    return sorted(
        str(item["metadata"]["name"])
        for item in overlays
        if item["metadata"]["name"] != overlay_name(pool.name)
        and (item.get("spec") or {}).get("weight") == WEIGHT
        and GPU_RESOURCE in ((item.get("spec") or {}).get("capacity") or {})
        and _may_be_about((item.get("spec") or {}).get("requirements") or [], pool)
    )


def _may_be_about(requirements: Iterable[Json], pool: NodePool) -> bool:
    """Whether the requirements match any node of the pool; an unknown answer counts as yes."""
    known: dict[str, tuple[str, ...]] = {LABEL_NODE_POOL: (pool.name,), LABEL_INSTANCE_TYPE: pool.instance_types}
    for item in requirements:
        values, operator = set(item.get("values") or []), item.get("operator")
        ours = known.get(str(item.get("key")), ())
        if ours and (operator == "DoesNotExist" or (operator == "In" and values.isdisjoint(ours))):
            return False
        if ours and operator == "NotIn" and values.issuperset(ours):
            return False
    return True


def of_cluster(overlays: Iterable[Json], cluster: str) -> list[str]:
    """Names of the overlays that carry a spec's label."""
    return sorted(
        str(item["metadata"]["name"])
        for item in overlays
        if (item["metadata"].get("labels") or {}).get(LABEL_CLUSTER) == cluster
    )
