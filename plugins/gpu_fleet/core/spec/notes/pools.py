"""Notes on what pools buy: for which pods, how many nodes, and how many of their shares pods can use.

Read in kubernetes-sigs/karpenter v1.14.1 pkg/controllers/provisioning/scheduling and pkg/utils/nodepool, and in
aws/karpenter-provider-aws v1.14.1 pkg/providers/instancetype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.kubernetes.names import LABEL_POOL
from gpu_fleet.core.spec.instances import PODS_OF_A_NODE, architecture, physical_gpus, pod_places, vcpus
from gpu_fleet.core.spec.problems import Note

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec
    from gpu_fleet.core.spec.pools import NodePool

#: Taints that keep a pod away; ``PreferNoSchedule`` does not keep it away for good.
_HARD = ("NoSchedule", "NoExecute")


def one_pod_reaches_several_pools(spec: ClusterSpec) -> Iterator[Note]:
    """A pod that tolerates one pool's taints may get a node of another pool, with other hardware or sharing."""
    for index, pool in enumerate(spec.node_pools):
        others = [
            other.name
            for other in spec.node_pools
            if other is not pool and _taints(other) <= _taints(pool) and _kind(other) != _kind(pool)
        ]
        # Pools with the same taints reach each other: one note is enough.
        earlier = {other.name for other in spec.node_pools[:index] if _taints(other) == _taints(pool)}
        if reached := [name for name in others if name not in earlier]:
            yield Note(
                f"nodePools[{index}].taints",
                f"a pod that tolerates the taints of pool {pool.name} can also use {', '.join(reached)} with other "
                "hardware or sharing; Karpenter buys from the pool with the highest weight. Let jobs select their pool "
                f"(nodeSelector: {LABEL_POOL}: {pool.name}), or give a pool a taint of its own",
            )


def _taints(pool: NodePool) -> frozenset[tuple[str, str, str]]:
    return frozenset((taint.key, taint.value, taint.effect) for taint in pool.taints if taint.effect in _HARD)


def _kind(pool: NodePool) -> tuple[tuple[str, ...], str]:
    """What a pod sees: the instance types and the sharing."""
    return tuple(sorted(pool.instance_types)), pool.config_entry


def pool_without_nodes_buys_none(spec: ClusterSpec) -> Iterator[Note]:
    for index, pool in enumerate(spec.node_pools):
        if pool.manage and not pool.wanted_nodes and pool.limits is None:
            yield Note(
                f"nodePools[{index}].wantedNodes",
                f"is 0, so pool {pool.name} buys no node, whatever pods request; write limits: {{nodes: N}} to let "
                "them buy up to N",
            )


def burst_buys_a_node_per_share(spec: ClusterSpec) -> Iterator[Note]:
    for index, pool in enumerate(spec.node_pools):
        if not (pool.shared and pool.manage):
            continue
        if spec.karpenter.manage and spec.karpenter.node_overlays:
            continue
        why = "karpenter.nodeOverlays is false" if spec.karpenter.manage else "Karpenter is not managed here"
        yield Note(
            f"nodePools[{index}].sharing",
            f"{why}, so Karpenter counts physical GPUs: until nodes have joined, each pod that requests one share buys "
            f"a node, up to {pool.node_limit} of pool {pool.name}",
        )


def caps_of_unequal_types(spec: ClusterSpec) -> Iterator[Note]:
    """``limits.cpu`` is exact if all types have the same number of vCPUs."""
    for index, pool in enumerate(spec.node_pools):
        known = {name: vcpus(name) for name in pool.instance_types}
        counts = sorted({count for count in known.values() if count is not None})
        if not pool.manage or not pool.node_limit:
            continue
        if len(counts) > 1:
            most = counts[-1] * pool.node_limit // counts[0]
            yield Note(
                f"nodePools[{index}].instanceTypes",
                f"types have {counts[0]} to {counts[-1]} vCPUs: a burst of pods that select the smallest type may buy "
                f"{most} nodes of pool {pool.name} instead of {pool.node_limit}; a pool of one type has an exact limit",
            )


def shares_beyond_pod_places(spec: ClusterSpec) -> Iterator[Note]:
    """More shares than pods fit on a node: the rest can never be used, but still counts as capacity."""
    for index, pool in enumerate(spec.node_pools):
        for name in pool.instance_types:
            gpus, places = physical_gpus(name), pod_places(name)
            if pool.shared and gpus is not None and places is not None:
                yield from _too_few_places(f"nodePools[{index}].sharing.replicas", pool, name, gpus, places)


def arm_needs_images_for_arm(spec: ClusterSpec) -> Iterator[Note]:
    """Karpenter finds an AMI for both architectures (aws/karpenter-provider-aws v1.14.1
    pkg/providers/amifamily/al2023.go), but a container of the wrong one only fails with ``exec format error``."""
    for index, pool in enumerate(spec.node_pools):
        arm = [name for name in pool.instance_types if architecture(name) == "arm64"]
        if not arm:
            continue
        others = [name for name in pool.instance_types if name not in arm]
        mixed = f", and {', '.join(others)} amd64: a job gets either" if others else ""
        yield Note(
            f"nodePools[{index}].instanceTypes",
            f"{', '.join(arm)} has Arm processors (arm64){mixed}; images of jobs, of DaemonSets and of "
            "validation have to be built for it",
        )


def _too_few_places(field: str, pool: NodePool, name: str, gpus: int, places: int) -> Iterator[Note]:
    shares, free = gpus * pool.replicas, places - PODS_OF_A_NODE
    if shares > free:
        yield Note(
            field,
            f"{gpus} x {pool.replicas} = {shares} shares on {name}, which can run {places} pods (network interfaces x "
            f"addresses, without prefix delegation), {PODS_OF_A_NODE} of them its own: at most "
            f"{max(free // gpus, 1)} replicas can be used",
        )


def places_by_ec2(pool: NodePool, gpus: int, places: dict[str, int]) -> list[Note]:
    """The same note with EC2's figures.

    :param places: by instance type.
    """
    if not pool.shared:
        return []
    field = f"pool {pool.name}, sharing.replicas"
    return [note for name, count in places.items() for note in _too_few_places(field, pool, name, gpus, count)]
