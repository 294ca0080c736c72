"""Gates on Karpenter: its CRDs, its controller, node classes and node pools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.gates.overlays import judge_overlay
from gpu_fleet.core.kubernetes.conditions import (
    conditions,
    created_at,
    explained,
    explaining,
    is_deleting,
    label_of,
    moment,
    outdated,
    sentence,
)
from gpu_fleet.core.kubernetes.kinds import CRD, DEPLOYMENT, EC2_NODE_CLASS, NODE_OVERLAY, NODE_POOL, POD, Kind
from gpu_fleet.core.kubernetes.names import KARPENTER_SELECTOR
from gpu_fleet.core.preflight.karpenter_credentials import without_credentials
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, combine, failed, progressing, ready

#: Reasons of EC2NodeClass conditions that only a change of the spec or of AWS resources can cure
#: (aws/karpenter-provider-aws pkg/controllers/nodeclass: ami.go, subnet.go, securitygroup.go).
_CLASS_FAILURES = frozenset({"AMINotFound", "SubnetsNotFound", "SecurityGroupsNotFound"})
#: Every other reason with which a condition stays False, of this version or one to come: some pass within seconds (IAM
#: and EC2 are eventually consistent, and Karpenter tries again), none is known to pass later. ``DependenciesNotReady``
#: only says that another condition is not True (v1.14.1 pkg/controllers/nodeclass/validation.go).
_CLASS_PATIENCE_S = 60.0
_CLASS_SUMMARIES = frozenset({"DependenciesNotReady"})
_AUTH_CHECKS = "AuthCheckFailed"
#: Reasons of NodePool conditions that waiting does not cure (kubernetes-sigs/karpenter
#: pkg/controllers/nodepool/validation and .../readiness).
_POOL_FAILURES = frozenset({"NodePoolValidationFailed", "NodeClassTerminating"})
#: The same, but possibly seen only because Karpenter's cache lags behind the class just applied: worth a retry.
_POOL_FAILURES_TO_RETRY = frozenset({"NodeClassNotFound"})
#: A pool whose class belongs to another provider never gets any status; real transitions take 20-30 ms.
NO_CONDITIONS_AFTER_S = 10.0


def _one(kind: Kind) -> Any:
    def queries(args: Args) -> tuple[Query, ...]:
        return (KubeQuery("objects", kind, name=args["name"]),)

    return queries


def _not_there(kind: Kind, name: str) -> Verdict:
    return progressing("NotFound", f"{kind.kind} {name} does not exist (yet)")


def _blocking(obj: Mapping[str, Any], reasons: frozenset[str]) -> Mapping[str, Any] | None:
    """The condition that says why the object will not become ready, if one does."""
    for condition in conditions(obj).values():
        if condition.get("status") == "False" and condition.get("reason") in reasons and not outdated(obj, condition):
            return condition
    return None


def _not_ready(obj: Mapping[str, Any], summary: Mapping[str, Any]) -> Verdict:
    """Not Ready yet, with reason and words of the conditions that explain it rather than of the summary."""
    reason = explaining(obj, summary).get("reason") or summary.get("reason")
    return progressing(str(reason or "NotReady"), f"{label_of(obj)}: {explained(obj, summary)}")


def _standing_failure(obj: Mapping[str, Any], *, started: float, now: float) -> Mapping[str, Any] | None:
    """A condition that has been False for longer than passing causes take, if one is and explains more than others.

    The time from before the wait does not count: the cause may be cured, and Karpenter looks again only now and then.
    """
    for kind, condition in conditions(obj).items():
        since = moment(condition.get("lastTransitionTime"))
        explains = kind != "Ready" and condition.get("reason") not in {None, "", *_CLASS_SUMMARIES}
        stands = (
            condition.get("status") == "False" and since is not None and now - max(since, started) >= _CLASS_PATIENCE_S
        )
        if explains and stands and not outdated(obj, condition):
            return condition
    return None


def _judge_class(snapshot: Snapshot, args: Args) -> Verdict:
    if not snapshot["objects"]:
        return _not_there(EC2_NODE_CLASS, args["name"])
    obj = snapshot["objects"][0]
    name = label_of(obj)
    if is_deleting(obj):
        return failed("NodeClassTerminating", f"{name} is being deleted; wait until it is gone, then run again")
    if blocking := _blocking(obj, _CLASS_FAILURES):
        return failed(
            str(blocking["reason"]),
            f"{name}: {sentence(blocking)}; correct nodeClass.amiAlias, or tag subnets and security groups as "
            "nodeClass.discoveryTag says",
        )
    condition = conditions(obj).get("Ready")
    if condition is None:
        return progressing("NoConditions", f"{name}: Karpenter has not reported on it yet")
    if old := outdated(obj, condition):
        return old
    if condition.get("status") == "True":
        return ready("NodeClassReady", f"{name} is Ready")
    if standing := _standing_failure(obj, started=float(args["started"]), now=float(args["now"])):
        reason = str(standing["reason"])
        remedy = (
            "a policy keeps Karpenter's role from it: a missing grant, a boundary or a service control policy"
            if reason.endswith(_AUTH_CHECKS)
            else "correct nodeClass in the cluster file, or what the message names; Karpenter's log has more"
        )
        return failed(reason, f"{name}: {sentence(standing)}; {remedy}", permanent=False)
    return _not_ready(obj, condition)


def _pool_queries(args: Args) -> tuple[Query, ...]:
    """With ``overlay``, the name of the pool's NodeOverlay, all of those too."""
    pool = KubeQuery("objects", NODE_POOL, name=args["name"])
    return (pool, KubeQuery("overlays", NODE_OVERLAY)) if args.get("overlay") else (pool,)


def _judge_pool_and_overlay(snapshot: Snapshot, args: Args) -> Verdict:
    pool = _judge_pool(snapshot, args)
    if not args.get("overlay"):
        return pool
    started, now = float(args["started"]), float(args["now"])
    overlay = judge_overlay(args["overlay"], snapshot["overlays"], started=started, now=now)
    return combine([pool, overlay], nothing=_not_there(NODE_POOL, args["name"]))


def _judge_pool(snapshot: Snapshot, args: Args) -> Verdict:
    if not snapshot["objects"]:
        return _not_there(NODE_POOL, args["name"])
    obj = snapshot["objects"][0]
    name = label_of(obj)
    if is_deleting(obj):
        return failed("NodePoolTerminating", f"{name} is being deleted; wait until it is gone, then run again")
    known = conditions(obj)
    if not known:
        since = max(float(args["started"]), created_at(obj) or 0.0)
        if float(args["now"]) - since >= NO_CONDITIONS_AFTER_S:
            return failed(
                "NoConditions",
                f"{name}: Karpenter has reported nothing on it within {NO_CONDITIONS_AFTER_S:.0f} s; either the "
                "controller does not run, or nodeClassRef names a class of another provider",
                permanent=False,
            )
        return progressing("NoConditions", f"{name}: Karpenter has not reported on it yet")
    if blocking := _blocking(obj, _POOL_FAILURES):
        return failed(str(blocking["reason"]), f"{name}: {sentence(blocking)}; correct the pool in the cluster file")
    if blocking := _blocking(obj, _POOL_FAILURES_TO_RETRY):
        return failed(
            str(blocking["reason"]), f"{name}: {sentence(blocking)}; apply its EC2NodeClass first", permanent=False
        )
    condition = known.get("Ready")
    if condition is None:
        return progressing("NotReady", f"{name}: Karpenter has not summed up its conditions yet")
    if old := outdated(obj, condition):
        return old
    if condition.get("status") == "True":
        return ready("NodePoolReady", f"{name} is Ready")
    return _not_ready(obj, condition)


def _karpenter_queries(args: Args) -> tuple[Query, ...]:
    namespace = args["namespace"]
    return (
        KubeQuery("deployments", DEPLOYMENT, namespace=namespace, label_selector=KARPENTER_SELECTOR),
        KubeQuery("pods", POD, namespace=namespace, label_selector=KARPENTER_SELECTOR, watch=False),
    )


def _pod_trouble(pods: list[dict[str, Any]]) -> str:
    """What keeps the pods from being ready, in the kubelet's or the scheduler's words."""
    for pod in pods:
        status = pod.get("status") or {}
        for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") and waiting["reason"] not in ("ContainerCreating", "PodInitializing"):
                detail = f": {waiting['message']}" if waiting.get("message") else ""
                return f"; {label_of(pod)}, container {container.get('name')}: {waiting['reason']}{detail}"
        for condition in status.get("conditions") or []:
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return f"; {label_of(pod)}: {condition.get('reason')}: {condition.get('message')}"
    return ""


def _judge_deployment(obj: Mapping[str, Any], pods: list[dict[str, Any]]) -> Verdict:
    name = label_of(obj)
    if is_deleting(obj):
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


def _judge_karpenter(snapshot: Snapshot, args: Args) -> Verdict:
    nothing = progressing(
        "NotFound", f"no Deployment with the label {KARPENTER_SELECTOR} in namespace {args['namespace']} (yet)"
    )
    return combine([_judge_deployment(obj, snapshot["pods"]) for obj in snapshot["deployments"]], nothing=nothing)


def _crd_queries(args: Args) -> tuple[Query, ...]:
    return tuple(KubeQuery(name, CRD, name=name) for name in args["crds"])


def _judge_crd(name: str, found: list[dict[str, Any]]) -> Verdict:
    if not found:
        return progressing("CrdNotFound", f"CustomResourceDefinition {name} does not exist (yet)")
    obj = found[0]
    if is_deleting(obj):
        return failed("CrdTerminating", f"{label_of(obj)} is being deleted; wait until it is gone, then run again")
    known = conditions(obj)
    refused = known.get("NamesAccepted", {})
    if refused.get("status") == "False":
        return failed("NamesNotAccepted", f"{label_of(obj)}: {sentence(refused)}; another CRD claims its names")
    established = known.get("Established")
    if established is None:
        return progressing("NotEstablished", f"{label_of(obj)}: the API server has not reported on it yet")
    if old := outdated(obj, established):
        return old
    if established.get("status") == "True":
        return ready("CrdEstablished", f"{name} is served")
    return progressing("NotEstablished", f"{label_of(obj)}: {sentence(established)}")


def _judge_crds(snapshot: Snapshot, args: Args) -> Verdict:
    nothing = progressing("NoCrds", "no CustomResourceDefinition was named")
    return combine([_judge_crd(name, snapshot[name]) for name in args["crds"]], nothing=nothing)


NODE_CLASS_READY = Gate("node_class_ready", _one(EC2_NODE_CLASS), _judge_class)
NODE_POOL_READY = Gate("node_pool_ready", _pool_queries, _judge_pool_and_overlay)
KARPENTER_AVAILABLE = Gate("karpenter_available", _karpenter_queries, _judge_karpenter)
CRDS_ESTABLISHED = Gate("crds_established", _crd_queries, _judge_crds)
