"""Whose instance it is: which nodes and NodeClaims of a cluster are this package's business, by EC2 instance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpu_fleet.core.interruptions.marks import Mark
from gpu_fleet.core.interruptions.messages import Kind, Notice
from gpu_fleet.core.interruptions.nodes import cordoning_run, instance_of, owner_of, removed_by_force
from gpu_fleet.core.interruptions.ways import Owner
from gpu_fleet.core.kubernetes.names import LABEL_NODE_GROUP, LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import epoch, labels_of, name_of

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Scope:
    """Which nodes are ours: those of the file's pools, and the GPU nodes of the managed node groups that it names."""

    pools: tuple[str, ...]
    node_groups: tuple[str, ...] = ()

    def selectors(self) -> tuple[str, ...]:
        """Label selectors that together find these nodes. No other node of the cluster is looked at."""
        wanted = ((LABEL_NODE_POOL, self.pools), (LABEL_NODE_GROUP, self.node_groups))
        return tuple(f"{label} in ({','.join(values)})" for label, values in wanted if values)

    def claim_selector(self) -> str | None:
        """The label selector of the pools' NodeClaims; ``None`` if there are no pools."""
        return f"{LABEL_NODE_POOL} in ({','.join(self.pools)})" if self.pools else None

    def has_node(self, node: Object) -> bool:
        return owner_of(node, self.pools, self.node_groups) is not None

    def has_claim(self, claim: Object) -> bool:
        return labels_of(claim).get(LABEL_NODE_POOL) in self.pools


@dataclass(frozen=True)
class Home:
    """What an instance is in the cluster.

    :ivar node: name of the Node, empty while the instance is launching.
    :ivar uid: of the Node.
    :ivar claim: name of the NodeClaim, empty for a node that Karpenter does not own.
    :ivar pool: name of the NodePool, empty for a node of a node group.
    :ivar node_group: name of the managed node group, empty for a node of a pool.
    :ivar leaving: since when the Node or its NodeClaim is being deleted, epoch seconds; ``None`` if neither is.
    :ivar forced: Karpenter removes it without regard to its pods.
    :ivar announced: the Node carries the mark of a scheduled change, and no run of this package has cordoned it: if it
        leaves, Karpenter was faster than the drain that was planned.
    """

    node: str = ""
    uid: str = ""
    claim: str = ""
    pool: str = ""
    node_group: str = ""
    leaving: float | None = None
    forced: bool = False
    announced: bool = False


def homes(nodes: Iterable[Object], claims: Iterable[Object], scope: Scope) -> dict[str, Home]:
    """Instance id -> what it is, for all that are in scope."""
    found: dict[str, Home] = {}
    for claim in claims:
        instance = instance_of(claim)
        if instance and scope.has_claim(claim):
            pool = labels_of(claim)[LABEL_NODE_POOL]
            found[instance] = Home(
                claim=name_of(claim), pool=pool, leaving=_leaving(claim), forced=removed_by_force(claim)
            )
    for node in nodes:
        instance = instance_of(node)
        if instance and scope.has_node(node):
            found[instance] = of_node(node, found.get(instance, Home()), scope)
    return found


def of_node(node: Object, known: Home, scope: Scope) -> Home:
    """The home with what its Node, which is in scope, says now."""
    owner, name = owner_of(node, scope.pools, scope.node_groups) or (Owner.KARPENTER, known.pool)
    leaving = [since for since in (known.leaving, _leaving(node)) if since is not None]
    return replace(
        known,
        node=name_of(node),
        uid=str((node.get("metadata") or {}).get("uid") or ""),
        pool=name if owner is Owner.KARPENTER else "",
        node_group=name if owner is Owner.NODE_GROUP else "",
        leaving=min(leaving) if leaving else None,
        announced=_announced(node),
    )


def left_before(home: Home, notice: Notice) -> bool:
    """Whether the instance ends because its node was removed: whoever removed the node has drained it.

    Every ordinary removal (consolidation, a teardown) ends in a state change of the instance. Karpenter deletes the
    NodeClaim of an instance that ends for another cause, too, but only after it has heard so. Two removals are not
    ordinary: by force, and because of a scheduled change that Karpenter has seen before its message came.
    """
    ending = notice.kind in (Kind.STOPPING, Kind.TERMINATING) and not (home.forced or home.announced)
    return ending and home.leaving is not None and home.leaving <= notice.at


def _announced(node: Object) -> bool:
    mark = Mark.of(node)
    of_it = mark is not None and mark.notice.instance == instance_of(node)
    return of_it and mark is not None and mark.notice.kind is Kind.SCHEDULED and not cordoning_run(node)


def _leaving(item: Object) -> float | None:
    return epoch((item.get("metadata") or {}).get("deletionTimestamp"))
