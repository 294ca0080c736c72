"""Gates on Karpenter's controller: nodes for it, whether it is available, and whether it serves finalizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.conditions import outdated, sentence
from gpu_fleet.core.kubernetes.containers import first_waiting
from gpu_fleet.core.kubernetes.kinds import DEPLOYMENT, NODE, POD
from gpu_fleet.core.kubernetes.names import KARPENTER_SELECTOR
from gpu_fleet.core.kubernetes.objects import conditions, deleting, title_of
from gpu_fleet.core.preflight.karpenter_credentials import without_credentials
from gpu_fleet.core.preflight.karpenter_nodes import Placement, coming, faults
from gpu_fleet.core.queries import AwsQuery, KubeQuery, Query
from gpu_fleet.core.teardown.karpenter import Karpenter, karpenter_state
from gpu_fleet.core.verdict import Verdict, combine, failed, progressing, ready


def _nodes_queries(args: Args) -> tuple[Query, ...]:
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


def _judge_nodes(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready with enough nodes for Karpenter's own replicas; FAILED if no node group is about to bring them.

    :param args: ``placement`` (see :class:`gpu_fleet.core.preflight.karpenter_nodes.Placement`), ``cluster``,
        ``groups`` (names of the node groups to look at) and ``until`` (RFC 3339 of the deadline, for the message).
    """
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


def _available_queries(args: Args) -> tuple[Query, ...]:
    namespace = args["namespace"]
    return (
        KubeQuery("deployments", DEPLOYMENT, namespace=namespace, label_selector=KARPENTER_SELECTOR),
        KubeQuery("pods", POD, namespace=namespace, label_selector=KARPENTER_SELECTOR, watch=False),
    )


def _pod_trouble(pods: list[dict[str, Any]]) -> str:
    """What keeps the pods from being ready, in the kubelet's or the scheduler's words."""
    for pod in pods:
        if (waiting := first_waiting(pod)) is not None:
            detail = f": {waiting.message}" if waiting.message else ""
            return f"; {title_of(pod)}, container {waiting.container}: {waiting.reason}{detail}"
        scheduled = conditions(pod).get("PodScheduled", {})
        if scheduled.get("status") == "False":
            return f"; {title_of(pod)}: {scheduled.get('reason')}: {scheduled.get('message')}"
    return ""


def _judge_deployment(obj: Mapping[str, Any], pods: list[dict[str, Any]]) -> Verdict:
    name = title_of(obj)
    if deleting(obj):
        return progressing("DeploymentTerminating", f"{name} is being deleted")
    if old := outdated(obj):
        return old
    wanted = (obj.get("spec") or {}).get("replicas", 1)
    if not wanted:
        return progressing("ScaledToZero", f"{name} is scaled to 0 replicas: Karpenter does not run")
    status = obj.get("status") or {}
    if "observedGeneration" not in status:
        return progressing("NotObserved", f"{name}: no controller has looked at it yet")
    known = conditions(obj)
    stuck, refused = known.get("Progressing", {}), known.get("ReplicaFailure", {})
    if stuck.get("reason") == "ProgressDeadlineExceeded" and not without_credentials(pods):
        why = f"; {sentence(refused)}" if refused.get("status") == "True" else ""
        message = f"{name}: {sentence(stuck)}{why}{_pod_trouble(pods)}"
        return failed("ProgressDeadlineExceeded", message, permanent=False)
    if refused.get("status") == "True":
        return progressing(str(refused.get("reason") or "ReplicaFailure"), f"{name}: {sentence(refused)}")
    updated, available = int(status.get("updatedReplicas") or 0), int(status.get("availableReplicas") or 0)
    if known.get("Available", {}).get("status") == "True" and updated >= wanted and available >= 1:
        return ready("KarpenterAvailable", f"{name}: {available} of {wanted} replicas available")
    if not available and (why := without_credentials(pods)):
        return failed("KarpenterWithoutCredentials", f"{name}: {why}")
    return progressing(
        "DeploymentNotAvailable",
        f"{name}: {available} of {wanted} replicas available, {updated} updated{_pod_trouble(pods)}",
    )


def _judge_available(snapshot: Snapshot, args: Args) -> Verdict:
    nothing = progressing(
        "NotFound", f"no Deployment with the label {KARPENTER_SELECTOR} in namespace {args['namespace']} (yet)"
    )
    return combine([_judge_deployment(obj, snapshot["pods"]) for obj in snapshot["deployments"]], nothing=nothing)


def _serves_queries(args: Args) -> tuple[Query, ...]:
    namespace = str(args["namespace"])
    return (
        KubeQuery("pods", POD, namespace, label_selector=KARPENTER_SELECTOR),
        KubeQuery("deployments", DEPLOYMENT, namespace, label_selector=KARPENTER_SELECTOR),
    )


def _judge_serves(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready with one Ready pod, which serves finalizers; FAILED if no Deployment would start another one.

    A controller that restarts, is rescheduled or rolls over is away for some seconds to a minute, and a teardown must
    not mistake that for its death. Dead at once is one that nothing would start again.

    :param args: ``namespace``.
    """
    where = f"Karpenter's controller in namespace {args['namespace']}"
    if karpenter_state(snapshot["pods"]) is Karpenter.ALIVE:
        return ready("KarpenterServes", f"a pod of {where} is Ready")
    wanting = [item for item in snapshot["deployments"] if (item.get("spec") or {}).get("replicas", 1)]
    if not wanting:
        return failed("KarpenterAbsent", f"no Deployment wants a pod of {where}")
    return progressing("KarpenterRestarting", f"no pod of {where} is Ready at the moment")


KARPENTER_NODES = Gate("karpenter_nodes", _nodes_queries, _judge_nodes)
KARPENTER_AVAILABLE = Gate("karpenter_available", _available_queries, _judge_available)
KARPENTER_SERVES = Gate("karpenter_serves", _serves_queries, _judge_serves)
