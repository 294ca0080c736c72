"""Gate ``burst``: the pods of a burst run, on exactly as many NodeClaims as they need.

Arguments: ``pool``, ``pods`` (how many were made), ``most_nodes`` (how many NodeClaims they may have bought).
"""

from __future__ import annotations

from gpu_fleet.core.capacity.burst import burst_selector
from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, POD
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL, SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import annotations_of, name_of, node_of, pool_claims
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

APPLIED = "karpenter.sh/capacity-overlay-applied"
BOUGHT_TOO_MANY, BOUGHT_TOO_FEW = "BurstBoughtTooMany", "BurstBoughtTooFew"


def queries(args: Args) -> tuple[Query, ...]:
    pool = str(args["pool"])
    return (
        KubeQuery("claims", NODE_CLAIM, label_selector=f"{LABEL_NODE_POOL}={pool}"),
        KubeQuery("pods", POD, SYSTEM_NAMESPACE, label_selector=burst_selector(pool)),
    )


def judge(snapshot: Snapshot, args: Args) -> Verdict:
    pool, wanted, nodes = str(args["pool"]), int(args.get("pods", 0)), int(args.get("most_nodes", 0))
    claims = pool_claims(snapshot["claims"], pool)
    names = [claim.name for claim in claims]
    if len(claims) > nodes:
        without = [name_of(item) for item in snapshot["claims"] if annotations_of(item).get(APPLIED) != "true"]
        why = (
            f"{', '.join(without[:3])} carry no {APPLIED}: Karpenter counted physical GPUs; see karpenter.nodeOverlays "
            "and its feature gate NodeOverlay"
            if without
            else "the NodeOverlay was applied, so the nodes advertise fewer GPUs than it says: see the device plugin"
        )
        return failed(
            BOUGHT_TOO_MANY,
            f"{wanted} pods of one share each bought {len(claims)} NodeClaims of pool {pool} instead of {nodes} "
            f"({', '.join(names)}); {why}",
        )
    bound = [pod for pod in snapshot["pods"] if node_of(pod)]
    if not wanted or len(bound) < wanted:
        return progressing("BurstWaits", f"{len(bound)} of {wanted} pods of the burst run, on {len(claims)} NodeClaims")
    if len(claims) < nodes:
        return failed(
            BOUGHT_TOO_FEW,
            f"{wanted} pods of one share each run on {len(claims)} NodeClaims of pool {pool} instead of {nodes}: its "
            "nodes advertise more GPUs than promised",
        )
    return ready("BurstFits", f"{wanted} pods of one share each bought {nodes} nodes of pool {pool}", nodes=names)


BURST = Gate("burst", queries, judge)
