"""Gate ``karpenter_nodes``: enough nodes for Karpenter's own replicas, while node groups are about to bring them.

Arguments: ``placement`` (see :class:`gpu_fleet.core.preflight.karpenter_nodes.Placement`), ``cluster``, ``groups``
(names of the node groups to look at) and ``until`` (RFC 3339 of the deadline, for the message).
"""

from __future__ import annotations

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.preflight.karpenter_nodes import Placement, coming, faults
from gpu_fleet.core.queries import AwsQuery, KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready


def _queries(args: Args) -> tuple[Query, ...]:
    return (
        KubeQuery("nodes", NODE),
        *(
            AwsQuery(
                key=f"group/{name}",
                service="eks",
                operation="describe_nodegroup",
                params={"clusterName": args["cluster"], "nodegroupName": name},
                path="nodegroup",
                absent_codes=("ResourceNotFoundException",),
            )
            for name in args.get("groups") or ()
        ),
    )


def _judge(snapshot: Snapshot, args: Args) -> Verdict:
    placement, nodes = Placement.from_json(args["placement"]), snapshot["nodes"]
    groups = [group for key, found in snapshot.items() if key.startswith("group/") for group in found]
    usable = placement.usable(nodes)
    if len(usable) >= placement.wanted:
        return ready("KarpenterNodesReady", f"{len(usable)} node(s) can run Karpenter: {', '.join(usable[:10])}")
    short = f"Karpenter's {placement.wanted} replicas have {len(usable)} node(s) that can run them"
    if on_the_way := coming(placement, nodes, groups):
        until = f"; waiting until {args['until']}" if args.get("until") else ""
        return progressing("NodeGroupJoining", f"{short}: {'; '.join(map(str, on_the_way))}{until}")
    found = "; ".join(faults(groups)) or "no node group is about to bring more"
    remedy = "repair it or add a managed node group, or lower karpenter.replicas"
    return failed("NoNodesForKarpenter", f"{short}, and {found}; {remedy}")


KARPENTER_NODES = Gate("karpenter_nodes", _queries, _judge)
