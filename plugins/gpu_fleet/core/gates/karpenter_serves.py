"""Gate ``karpenter_serves``: a controller is there that serves finalizers, or is known not to come.

Arguments: ``namespace``. A controller that restarts, is rescheduled or rolls over is away for some seconds to a minute,
and a teardown must not take that for its death. Dead at once is one that nothing would start again.
"""

from __future__ import annotations

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.kinds import DEPLOYMENT, POD
from gpu_fleet.core.kubernetes.names import KARPENTER_SELECTOR
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.teardown.karpenter import Karpenter, karpenter_state
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready


def _queries(args: Args) -> tuple[Query, ...]:
    namespace = str(args["namespace"])
    return (
        KubeQuery("pods", POD, namespace, label_selector=KARPENTER_SELECTOR),
        KubeQuery("deployments", DEPLOYMENT, namespace, label_selector=KARPENTER_SELECTOR),
    )


def judge_serves(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready with one Ready pod; FAILED if no Deployment would start another one."""
    where = f"Karpenter's controller in namespace {args['namespace']}"
    if karpenter_state(snapshot["pods"]) is Karpenter.ALIVE:
        return ready("KarpenterServes", f"a pod of {where} is Ready")
    wanting = [item for item in snapshot["deployments"] if (item.get("spec") or {}).get("replicas", 1)]
    if not wanting:
        return failed("KarpenterAbsent", f"no Deployment wants a pod of {where}")
    return progressing("KarpenterRestarting", f"no pod of {where} is Ready at the moment")


KARPENTER_SERVES = Gate("karpenter_serves", _queries, judge_serves)
