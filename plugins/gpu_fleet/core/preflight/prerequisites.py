"""All that nodes and a managed Karpenter need of the account and the cluster. Pure.

Preflight judges it first, because a missing prerequisite would otherwise show only minutes after something was bought.
"""

from __future__ import annotations

from gpu_fleet.core.preflight.controller_prerequisites import identity, karpenter_nodes, queue
from gpu_fleet.core.preflight.facts import Facts, Prerequisite
from gpu_fleet.core.preflight.maintenance import concerns, maintenance
from gpu_fleet.core.preflight.node_prerequisites import (
    access_entry,
    buys_spot,
    discovery,
    makes_nodes,
    node_role,
    spot_role,
    subnet_ids,
)
from gpu_fleet.core.spec import ClusterSpec


def judge(spec: ClusterSpec, facts: Facts) -> list[Prerequisite]:
    """Every prerequisite of this spec; those of components that others manage are left out."""
    found: list[Prerequisite] = []
    if makes_nodes(spec):
        found += [
            node_role(spec, facts),
            access_entry(spec, facts),
            discovery(spec, "subnet", subnet_ids(facts.subnets)),
            discovery(spec, "security group", facts.security_groups),
        ]
    if buys_spot(spec):
        found.append(spot_role(spec, facts))
    if spec.karpenter.manage:
        found.append(identity(spec, facts))
        if spec.karpenter.interruption_queue:
            found.append(queue(spec, facts))
        found.append(karpenter_nodes(spec, facts))
    if concerns(spec):
        found.append(maintenance(spec, facts))
    return found
