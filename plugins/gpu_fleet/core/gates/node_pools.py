"""Gates on a pool's own objects: its EC2NodeClass, its NodePool and its NodeOverlay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.conditions import explained, explaining, outdated, sentence
from gpu_fleet.core.kubernetes.kinds import EC2_NODE_CLASS, NODE_OVERLAY, NODE_POOL, Kind
from gpu_fleet.core.kubernetes.objects import conditions, created_at, deleting, epoch, title_of
from gpu_fleet.core.manifests.overlays import WEIGHT
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
#: Seconds after which an object without conditions gets none any more: real transitions take 20-30 ms. So it is with a
#: pool whose class belongs to another provider, and with every overlay if the feature gate is off.
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
    return progressing(str(reason or "NotReady"), f"{title_of(obj)}: {explained(obj, summary)}")


def _lasting_failure(obj: Mapping[str, Any], *, started: float, now: float) -> Mapping[str, Any] | None:
    """A condition that has been False for longer than passing causes take, if one is and explains more than others.

    The time from before the wait does not count: the cause may be cured, and Karpenter looks again only now and then.
    """
    for kind, condition in conditions(obj).items():
        since = epoch(condition.get("lastTransitionTime"))
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
    name = title_of(obj)
    if deleting(obj):
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
    if lasting := _lasting_failure(obj, started=float(args["started"]), now=float(args["now"])):
        reason = str(lasting["reason"])
        remedy = (
            "a policy keeps Karpenter's role from it: a missing grant, a boundary or a service control policy"
            if reason.endswith(_AUTH_CHECKS)
            else "correct nodeClass in the cluster file, or what the message names; Karpenter's log has more"
        )
        return failed(reason, f"{name}: {sentence(lasting)}; {remedy}", permanent=False)
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
    overlay = _judge_overlay(args["overlay"], snapshot["overlays"], started=started, now=now)
    return combine([pool, overlay], nothing=_not_there(NODE_POOL, args["name"]))


def _judge_pool(snapshot: Snapshot, args: Args) -> Verdict:
    if not snapshot["objects"]:
        return _not_there(NODE_POOL, args["name"])
    obj = snapshot["objects"][0]
    name = title_of(obj)
    if deleting(obj):
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


def _judge_overlay(name: str, overlays: Sequence[Mapping[str, Any]], *, started: float, now: float) -> Verdict:
    """
    :param overlays: all of the cluster, because a conflict names none.
    :param started: epoch seconds at which the wait began.
    :param now: epoch seconds.
    """
    found = next((item for item in overlays if item["metadata"]["name"] == name), None)
    if found is None:
        return progressing("NotFound", f"NodeOverlay {name} does not exist (yet)")
    words = title_of(found)
    if deleting(found):
        return failed("NodeOverlayTerminating", f"{words} is being deleted; wait until it is gone, then run again")
    known = conditions(found)
    if not known:
        if now - max(started, created_at(found) or 0.0) >= NO_CONDITIONS_AFTER_S:
            return failed(
                "NodeOverlayIgnored",
                f"{words}: Karpenter has reported nothing on it within {NO_CONDITIONS_AFTER_S:.0f} s; its feature gate "
                "NodeOverlay is off, so every share would buy a node: see FEATURE_GATES in its Deployment, or set "
                "karpenter.nodeOverlays: false",
                permanent=False,
            )
        return progressing("NoConditions", f"{words}: Karpenter has not reported on it yet")
    valid = known.get("ValidationSucceeded", {})
    if valid.get("status") == "False" and not outdated(found, valid):
        if valid.get("reason") == "Conflict":
            heavy = [
                str(item["metadata"]["name"])
                for item in overlays
                if item is not found and (item.get("spec") or {}).get("weight") == WEIGHT
            ]
            named = ", ".join(heavy) or "none that is still there"
            return failed(
                "OverlayConflict",
                f"{words}: {sentence(valid)}: {named}; change that NodeOverlay's weight or requirements",
            )
        return failed("NodeOverlayInvalid", f"{words}: {sentence(valid)}")
    condition = known.get("Ready")
    if condition is None:
        return progressing("NotReady", f"{words}: Karpenter has not summed up its conditions yet")
    if old := outdated(found, condition):
        return old
    if condition.get("status") == "True":
        return ready("NodeOverlayReady", f"{words} is Ready")
    reason = explaining(found, condition).get("reason") or condition.get("reason")
    return progressing(str(reason or "NotReady"), f"{words}: {explained(found, condition)}")


NODE_CLASS_READY = Gate("node_class_ready", _one(EC2_NODE_CLASS), _judge_class)
NODE_POOL_READY = Gate("node_pool_ready", _pool_queries, _judge_pool_and_overlay)
