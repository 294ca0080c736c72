"""The nodes that the package answers for, as they are now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import NotFound
from gpu_fleet.core.interruptions.nodes import OurNode, our_node
from gpu_fleet.core.interruptions.whose import Scope
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


@dataclass(frozen=True)
class FleetNodes:
    """
    :ivar ours: what the package makes of each, by name.
    :ivar objects: the Nodes as the API server gave them.
    :ivar claims: the pools' NodeClaims; none where Karpenter is not installed.
    """

    ours: dict[str, OurNode]
    objects: list[dict[str, Any]]
    claims: list[dict[str, Any]]

    def with_uids(self, uids: set[str]) -> list[OurNode]:
        """Those of these UIDs, by name; EC2 may give the name of a node to a later one."""
        return sorted((node for node in self.ours.values() if node.uid in uids), key=lambda node: node.name)

    def objects_of(self, nodes: list[OurNode]) -> list[dict[str, Any]]:
        wanted = {node.uid for node in nodes}
        return [each for each in self.objects if each["metadata"]["uid"] in wanted]


def fleet_nodes(kube: KubeClient, spec: ClusterSpec) -> FleetNodes:
    """Look at the nodes of the file's pools and node groups."""
    scope = Scope(spec.pool_names, spec.interruptions.node_groups)
    objects = {
        node["metadata"]["uid"]: node for each in scope.selectors() for node in kube.list(NODE, label_selector=each)
    }
    try:
        claims = kube.list(NODE_CLAIM, label_selector=scope.claim_selector())
    except NotFound:  # Karpenter is not installed: there are node groups alone.
        claims = []
    by_node = {str((claim.get("status") or {}).get("nodeName") or ""): claim for claim in claims}
    found = (our_node(node, by_node, scope.pools, scope.node_groups) for node in objects.values())
    return FleetNodes({node.name: node for node in found if node is not None}, list(objects.values()), claims)
