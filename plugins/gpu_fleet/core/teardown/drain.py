"""Which nodes a teardown drains that no pool's own drain does, and what helps when its time is up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_fleet.core.drain.plan import PodPlan
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.scope import doomed_pools, orphans_go, pool_of


def remaining_nodes(
    spec: ClusterSpec,
    nodes: Iterable[Mapping[str, Any]],
    node_pools: Sequence[Mapping[str, Any]],
    drained: Iterable[str],
    *,
    emergency: bool = False,
) -> list[str]:
    """Names of the nodes that a teardown removes and that no pool's own drain drains.

    They belong to NodePools that the spec no longer has, or to none that exists: Karpenter would evict their pods
    without regard to ``drain``.

    :param nodes: those with a NodePool's label.
    :param drained: pools with a drain of their own.
    :param emergency: Karpenter is dead, and the teardown continues without it: it then removes only what is ours
        (``core/teardown/emergency.py``), and the owner of a NodePool that is gone is unknown.
    """
    existing = {pool["metadata"]["name"] for pool in node_pools}
    doomed = set(doomed_pools(spec, node_pools))
    orphans = orphans_go(spec) and not emergency
    elsewhere = set(drained)
    return sorted(
        node["metadata"]["name"]
        for node in nodes
        if (pool := pool_of(node)) not in elsewhere and (pool in doomed or (orphans and pool not in existing))
    )


def remedy(left: Iterable[PodPlan], dead: Mapping[str, str], when_time_expires: str) -> str:
    """What a person can do about the pods that are left when the time is up.

    :param dead: nodes that are not Ready, and why.
    :param when_time_expires: ``drain.whenTimeExpires``.
    """
    again = "clear teardown.plan_again and what follows it"
    ways = []
    if any(one.node not in dead for one in left):
        ways.append(f"delete these pods or relax their PodDisruptionBudgets, then {again}")
    if any(one.node in dead for one in left):
        ways.append(
            "no kubelet ends the pods of a node that is not Ready: bring it back, delete them with --force, or "
            f"delete the node's NodeClaim, then {again}"
        )
    if when_time_expires == "fail":
        ways.append("set drain.whenTimeExpires: delete and start another run")
    return "; or ".join(ways)
