"""Whether a pool that lost nodes still has what it promised, and what else could serve its jobs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gpu_fleet.core.capacity.placeholders import counts_as_capacity
from gpu_fleet.core.interruptions.report import INTERRUPTED
from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.spec import ClusterSpec, NodePool

#: Reasons of a pool that lost what it promised: to EC2, by a drain that a person started, or with its Capacity Block.
NODES_INTERRUPTED, NODES_DRAINED, BLOCK_ENDED = "NodesInterrupted", "NodesDrained", "CapacityBlockEnded"


@dataclass(frozen=True)
class Loss:
    """
    :ivar lost: the nodes that were interrupted.
    :ivar left: nodes that still take jobs.
    :ivar broken: the pool has less than it promised: fewer nodes than ``wantedNodes``, or none at all.
    """

    pool: str
    lost: tuple[str, ...]
    left: tuple[str, ...]
    broken: bool
    message: str


def loss_of(
    spec: ClusterSpec, pool: NodePool, lost: Collection[str], nodes: Iterable[PoolNode], deed: str = INTERRUPTED
) -> Loss:
    """What a pool has left.

    :param lost: names of its interrupted nodes.
    :param nodes: of the pool, as they are now.
    :param deed: what happened to them, for the message.
    """
    left = tuple(sorted(node.name for node in nodes if node.name not in set(lost) and counts_as_capacity(node)))
    broken = len(left) < max(1, pool.wanted_nodes)
    words = f"{len(lost)} node(s) {deed}: {', '.join(sorted(lost)[:5])}"
    if len(lost) > 5:
        words += f" and {len(lost) - 5} more"
    words += f"; {len(left)} of {pool.wanted_nodes} wanted node(s) left" if pool.wanted_nodes else f"; {len(left)} left"
    if not left:
        words += f"; {fallback(spec, pool)}"
    return Loss(pool.name, tuple(sorted(lost)), left, broken, words)


def fallback(spec: ClusterSpec, pool: NodePool) -> str:
    """In words: what the spec allows where a whole pool is gone."""
    if pool.capacity_block is not None:
        return "they come back with the next Capacity Block, by a run of gpu_lifecycle"
    if "on-demand" in pool.capacity_types and pool.node_limit:
        return "Karpenter may replace them by on-demand instances"
    others = [
        other.name
        for other in spec.node_pools
        if other.name != pool.name and other.sharing_words == pool.sharing_words and "on-demand" in other.capacity_types
    ]
    if others:
        return (
            f"{pool.name} may buy spot only; pools that may buy on-demand and share GPUs in the same way: "
            f"{', '.join(others)}"
        )
    return f"{pool.name} may buy spot only, and no other pool may buy on-demand: write capacityTypes: [spot, on-demand]"
