"""Drifted nodes that take up ``limits.nodes``, so that wanted nodes cannot be launched: which stay, what helps. Pure.

A node with another sharing, taint or label does not count as a wanted node, but it counts for the limit. If the drifted
nodes that Karpenter does not remove leave too little room, waiting does not help. What does help depends on the pods
that are on them: every remedy that is named makes enough room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.objects import Object, finished, is_ours, node_of, of_daemon_set
from gpu_fleet.core.nodes.drifted import describe
from gpu_fleet.core.nodes.pool_template import sentence
from gpu_fleet.core.spec.budgets import DRIFTED

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool

EMPTY = "Empty"
#: Most nodes that are named one by one.
_NAMED = 5


@dataclass(frozen=True)
class OldNode:
    """A drifted node of the pool.

    :ivar why: how it differs from the pool's present template.
    :ivar claim: its NodeClaim; empty if that is not known.
    :ivar pods: ``namespace/name`` of users' pods that hold GPUs there.
    :ivar idle: whether no user's pod holds a GPU there or asks not to be disrupted: the node may be replaced.
    :ivar empty: whether it has no pod that Karpenter would have to place elsewhere.
    """

    name: str
    why: tuple[str, ...]
    claim: str = ""
    pods: tuple[str, ...] = ()
    idle: bool = True
    empty: bool = True

    def __str__(self) -> str:
        return sentence(self.name, self.why, self.pods)


def old_nodes(
    drifted: Mapping[str, tuple[str, ...]], claims: Iterable[Object], pods: Iterable[Object]
) -> list[OldNode]:
    """What is known of the drifted nodes, by name.

    :param drifted: node -> how it differs from the present template.
    :param pods: all pods of the cluster.
    """
    pods = list(pods)
    by_node = {str((claim.get("status") or {}).get("nodeName") or ""): claim for claim in claims}
    occupied = {node_of(pod) for pod in pods if _reschedulable(pod)}
    found = []
    for name, why in sorted(drifted.items()):
        seen = describe(by_node.get(name) or {"status": {"nodeName": name}}, pods)
        claim = seen.claim if name in by_node else ""
        found.append(OldNode(name, why, claim, seen.pods, seen.idle, name not in occupied))
    return found


def _reschedulable(pod: Object) -> bool:
    """Whether the pod keeps its node from being empty (kubernetes-sigs/karpenter v1.14.1
    ``pkg/utils/pod/scheduling.go``, IsReschedulable). Pods of this package do not: they end with the run at the latest.
    """
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    mirror = any(owner.get("kind") == "Node" for owner in owners)
    return not (finished(pod) or is_ours(pod) or of_daemon_set(pod) or mirror)


def stays(pool: NodePool, node_pool: Mapping[str, Any], *, within_s: float, empty: bool) -> bool:
    """Whether a drifted node will still be there after so many seconds, as far as Karpenter decides it.

    :param node_pool: the pool's manifest.
    :param empty: whether the node has no pods of others.
    """
    if not _is_barred(node_pool, DRIFTED):
        return False
    return not (empty and goes_when_empty(pool, node_pool, within_s=within_s))


def goes_when_empty(pool: NodePool, node_pool: Mapping[str, Any], *, within_s: float) -> bool:
    """Whether Karpenter removes an empty node within so many seconds (kubernetes-sigs/karpenter v1.14.1
    ``pkg/controllers/disruption/emptiness.go``)."""
    after = pool.disruption.consolidate_after
    return not after.never and after.seconds <= within_s and not _is_barred(node_pool, EMPTY)


def _is_barred(node_pool: Mapping[str, Any], reason: str) -> bool:
    """Whether a budget without a schedule forbids Karpenter to remove nodes for a reason (kubernetes-sigs/karpenter
    v1.14.1 ``pkg/apis/v1/nodepool.go``, GetAllowedDisruptionsByReason)."""
    budgets = ((node_pool.get("spec") or {}).get("disruption") or {}).get("budgets") or []
    return any(
        str(budget.get("nodes")) in ("0", "0%")
        and not budget.get("schedule")
        and (not budget.get("reasons") or reason in budget["reasons"])
        for budget in budgets
    )


def cap_is_held(pool: NodePool, *, needed: int, staying: Sequence[OldNode], go_when_empty: bool) -> str:
    """Why the missing nodes cannot be launched: drifted nodes use up ``limits.nodes``. Empty if there is room.

    :param needed: nodes of the present template that the pool must have room for.
    :param staying: the drifted nodes that Karpenter will not remove soon.
    :param go_when_empty: whether Karpenter soon removes nodes that are empty.
    """
    excess = needed + len(staying) - pool.node_limit
    if not staying or excess <= 0:
        return ""
    told = "; ".join(map(str, staying[:_NAMED]))
    more = f" (and {len(staying) - _NAMED} more)" if len(staying) > _NAMED else ""
    return (
        f"pool {pool.name} may have {pool.node_limit} node(s) at once, and {len(staying)} that drifted hold places "
        f"that {needed} node(s) of the present template need: {told}{more}. "
        f"{_remedies(pool, needed, staying, excess, go_when_empty)}"
    )


def _remedies(pool: NodePool, needed: int, staying: Sequence[OldNode], excess: int, go_when_empty: bool) -> str:
    """
    :param excess: how many of the staying nodes have to be removed unless the limit is raised.
    """
    raised = (
        f"Raise limits.nodes of pool {pool.name} to {needed + len(staying)} for the time being, and run gpu_lifecycle "
        "with replaceDrifted: idle, which removes idle ones once the new nodes are proven"
    )
    idle = [node for node in staying if node.idle and node.claim]
    if excess <= len(idle):
        claims = " ".join(node.claim for node in idle[:excess])
        return f"{raised}; or give idle ones up before their replacement is there: kubectl delete nodeclaim {claims}"
    jobs = excess - len(idle)
    if jobs > len(staying) - len(idle):
        return raised  # removing all of them would not make enough room
    then = (
        "their nodes go by themselves then"
        if go_when_empty and not idle
        else "the next run names the NodeClaims that can be deleted then"
    )
    return f"{raised}; or wait until the jobs on {jobs} of the nodes in use have ended: {then}"
