"""How many nodes a pool needs before some of its nodes may be drained: make before break. Pure.

The nodes that are to be drained are cordoned first, so they neither count as capacity nor take further pods. As many
new nodes as these then come on top of what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.capacity.placeholders import counts_as_capacity
from gpu_fleet.core.interruptions.nodes import OurNode
from gpu_fleet.core.interruptions.ways import Owner
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import Object, labels_of, pool_nodes
from gpu_fleet.core.nodes.pool_template import PoolTemplate, of_template, older_nodes
from gpu_fleet.core.spec import ClusterSpec, NodePool


@dataclass(frozen=True)
class ReplacedFirst:
    """One pool whose nodes are replaced before they are drained.

    :ivar nodes: names of those nodes.
    :ivar surge: how many nodes beyond ``wantedNodes`` are requested.
    :ivar problem: why they cannot be launched first; empty if they can.
    """

    pool: str
    nodes: tuple[str, ...]
    surge: int
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"nodes": list(self.nodes), "surge": self.surge}


def replaced_first(
    spec: ClusterSpec, drained: Iterable[OurNode], nodes: Sequence[Object], claims: Sequence[Object]
) -> dict[str, ReplacedFirst]:
    """Pool -> what has to come first. Nodes of node groups are left out: a group launches nothing in advance.

    :param nodes: of the pools, at least.
    :param claims: NodeClaims.
    """
    by_pool: dict[str, list[str]] = {}
    for node in drained:
        if node.owner is Owner.KARPENTER:
            by_pool.setdefault(node.pool, []).append(node.name)
    return {pool: _of_pool(spec.pool(pool), names, nodes, claims) for pool, names in sorted(by_pool.items())}


def _of_pool(
    pool: NodePool, drained: Sequence[str], nodes: Sequence[Object], claims: Sequence[Object]
) -> ReplacedFirst:
    template = PoolTemplate.of(pool)
    mine = [claim for claim in claims if labels_of(claim).get(LABEL_NODE_POOL) == pool.name]
    older: Mapping[str, Any] = older_nodes(template, pool.name, nodes, mine)
    present = pool_nodes(nodes, pool.name)
    stay = [n for n in present if counts_as_capacity(n) and n.name not in older and n.name not in drained]
    joined = {node.name for node in present}
    coming = [
        claim
        for claim in of_template(mine, template)
        if (claim.get("status") or {}).get("nodeName") not in joined and not claim["metadata"].get("deletionTimestamp")
    ]
    total = max(pool.wanted_nodes, len(stay) + len(drained))
    needed = max(0, total - len(stay) - len(coming))
    problem = ""
    if len(mine) + needed > pool.node_limit:
        problem = (
            f"pool {pool.name} has {len(mine)} node(s) and needs {needed} more first, and limits.nodes is "
            f"{pool.node_limit}"
        )
    return ReplacedFirst(pool.name, tuple(sorted(drained)), total - pool.wanted_nodes, problem)
