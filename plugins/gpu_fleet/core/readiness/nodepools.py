"""Gates of EC2NodeClasses and NodePools: is Karpenter able to launch what the spec asks for?

Conditions and reasons: aws/karpenter-provider-aws v1.14 pkg/apis/v1/ec2nodeclass_status.go and
kubernetes-sigs/karpenter v1.14 pkg/apis/v1/nodepool_status.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.gates import Args, Gate, KubeQuery, Snapshot, register
from gpu_fleet.core.kinds import EC2_NODE_CLASS, NODE_POOL, Kind
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

#: Reasons that mean the account or the cluster file is wrong: waiting does not help.
FATAL_NODE_CLASS_REASONS = frozenset({"AMINotFound", "SubnetsNotFound", "SecurityGroupsNotFound"})
FATAL_NODE_POOL_REASONS = frozenset({"NodePoolValidationFailed", "NodeClassTerminating"})
#: Reasons that pass as soon as another task has done its part again.
TRANSIENT_NODE_POOL_REASONS = frozenset({"NodeClassNotFound"})

_REMEDIES = {
    "AMINotFound": "check nodeClass.amiAlias against the EKS AMI releases for this Kubernetes version",
    "SubnetsNotFound": "tag the subnets karpenter.sh/discovery with the value of nodeClass.discoveryTag",
    "SecurityGroupsNotFound": "tag the security groups karpenter.sh/discovery with the value of nodeClass.discoveryTag",
}

#: Karpenter sets a NodePool's first conditions within milliseconds; a class of a foreign provider never gets any.
SECONDS_WITHOUT_CONDITIONS = 10.0


def _conditions(item: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = (item.get("status") or {}).get("conditions") or []
    return {condition["type"]: condition for condition in found}


def _stale(item: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Whether the condition speaks of an older generation than the object's own."""
    generation = int(item["metadata"].get("generation", 0))
    return int(condition.get("observedGeneration", -1)) < generation


def _query(key: str, kind: Kind) -> Any:
    return lambda args: (KubeQuery(key, kind, name=str(args["name"])),)


def _waiting(what: str, item: Mapping[str, Any], conditions: dict[str, dict[str, Any]]) -> Verdict | None:
    """The verdict that holds for both kinds as long as nothing can be said of ``Ready``."""
    main = conditions.get("Ready")
    if main is None:
        return progressing("AwaitingReconciliation", f"{what} has no Ready condition yet; does Karpenter run?")
    if _stale(item, main):
        return progressing(
            "ObservedGenerationOld",
            f"{what}: Karpenter has seen generation {main.get('observedGeneration', 'none')}, "
            f"the object is at {item['metadata'].get('generation')}",
        )
    return None


def _explain(what: str, conditions: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Reason and sentence of the first condition that is not True; the roots before the summary Ready."""
    others = [c for kind, c in conditions.items() if kind not in ("Ready", "NodeRegistrationHealthy")]
    broken = [c for c in others if c.get("status") == "False"] or [c for c in others if c.get("status") != "True"]
    condition = broken[0] if broken else conditions["Ready"]
    reason = str(condition.get("reason") or "NotReady")
    detail = condition.get("message") or f"{condition['type']} is {condition.get('status')}"
    return reason, f"{what} is not ready: {reason}: {detail}"


def judge_node_class(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready when the EC2NodeClass is Ready at its own generation; a missing AMI, subnet or security group fails."""
    what = f"EC2NodeClass {args['name']}"
    if not snapshot["node_class"]:
        return progressing("NodeClassNotFound", f"{what} does not exist yet")
    item = snapshot["node_class"][0]
    if item["metadata"].get("deletionTimestamp"):
        return failed("NodeClassTerminating", f"{what} is being deleted; apply it again afterwards", permanent=False)
    conditions = _conditions(item)
    waiting = _waiting(what, item, conditions)
    if waiting is not None:
        return waiting
    if conditions["Ready"].get("status") == "True":
        return ready("NodeClassReady", f"{what} is ready")
    fatal = [
        c
        for c in conditions.values()
        if c.get("status") == "False" and c.get("reason") in FATAL_NODE_CLASS_REASONS and not _stale(item, c)
    ]
    if fatal:
        reason = str(fatal[0]["reason"])
        return failed(reason, f"{what}: {fatal[0].get('message') or reason}; {_REMEDIES[reason]}")
    return progressing(*_explain(what, conditions))


def judge_node_pool(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready when the NodePool is Ready at its own generation."""
    what = f"NodePool {args['name']}"
    if not snapshot["node_pool"]:
        return progressing("NodePoolNotFound", f"{what} does not exist yet")
    item = snapshot["node_pool"][0]
    if item["metadata"].get("deletionTimestamp"):
        return failed("NodePoolTerminating", f"{what} is being deleted; apply it again afterwards", permanent=False)
    conditions = _conditions(item)
    waited = float(args.get("now", 0.0)) - float(args.get("started", args.get("now", 0.0)))
    if not conditions and waited >= SECONDS_WITHOUT_CONDITIONS:
        return failed(
            "NeverReconciled",
            f"{what} has no conditions after {waited:.0f} s: Karpenter does not run, or its nodeClassRef belongs "
            "to another provider",
            permanent=False,
        )
    waiting = _waiting(what, item, conditions)
    if waiting is not None:
        return waiting
    if conditions["Ready"].get("status") == "True":
        return ready("NodePoolReady", f"{what} is ready")
    reason, message = _explain(what, conditions)
    if reason in FATAL_NODE_POOL_REASONS:
        return failed(reason, f"{message}; correct the pool in the cluster file")
    if reason in TRANSIENT_NODE_POOL_REASONS:
        return failed(reason, f"{message}; apply the node class again", permanent=False)
    return progressing(reason, message)


NODE_CLASS_READY = register(Gate("node_class_ready", _query("node_class", EC2_NODE_CLASS), judge_node_class))
NODE_POOL_READY = register(Gate("node_pool_ready", _query("node_pool", NODE_POOL), judge_node_pool))
