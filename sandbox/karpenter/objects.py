"""Helpers that read Kubernetes objects (kubernetes-sigs/karpenter ``pkg/utils``)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from sandbox.karpenter.durations import epoch, seconds

Object = dict[str, Any]

POOL = "karpenter.sh/nodepool"
REGISTERED, INITIALIZED = "karpenter.sh/registered", "karpenter.sh/initialized"
TERMINATION = "karpenter.sh/termination"
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
HASH, HASH_VERSION_KEY, HASH_VERSION = "karpenter.sh/nodepool-hash", "karpenter.sh/nodepool-hash-version", "v3"
DEADLINE = "karpenter.sh/nodeclaim-termination-timestamp"
UNREGISTERED_TAINT: Object = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
DISRUPTED_TAINT: Object = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}
_EPHEMERAL = (
    ("node.kubernetes.io/not-ready", "NoSchedule"),
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoSchedule"),
    ("node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule"),
    ("karpenter.sh/unregistered", "NoExecute"),
)


def labels(obj: Object) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: Object) -> dict[str, str]:
    return obj["metadata"].get("annotations") or {}


def name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def uid(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def deleting(obj: Object) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def provider_id(claim: Object) -> str:
    return str((claim.get("status") or {}).get("providerID") or "")


def ours(node_class_ref: Object) -> bool:
    """Whether a nodeClassRef is of the AWS provider; Karpenter's AWS build ignores pools and claims of others."""
    return bool(node_class_ref.get("group") == "karpenter.k8s.aws" and node_class_ref.get("kind") == "EC2NodeClass")


# --- taints ------------------------------------------------------------------------------------------------------


def same_taint(left: Object, right: Object) -> bool:
    """Key and effect decide (corev1 ``Taint.MatchTaint``)."""
    return bool(left["key"] == right["key"] and left["effect"] == right["effect"])


def merge_taints(taints: Iterable[Object], more: Iterable[Object] | None) -> list[Object]:
    merged = list(taints)
    for taint in more or ():
        if not any(same_taint(taint, each) for each in merged):
            merged.append(dict(taint))
    return merged


def ephemeral(taint: Object) -> bool:
    """A taint that is removed while a node starts."""
    return (taint["key"], taint["effect"]) in _EPHEMERAL or str(taint["key"]).startswith("readiness.k8s.io/")


def show_taint(taint: Object) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint['effect']}"


def tolerates(tolerations: Iterable[Object] | None, taint: Object) -> bool:
    for toleration in tolerations or ():
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        if toleration.get("operator") == "Exists":
            if toleration.get("key") in (None, "", taint["key"]):
                return True
        elif toleration.get("key") == taint["key"] and (toleration.get("value") or "") == (taint.get("value") or ""):
            return True
    return False


def intolerable(tolerations: Iterable[Object] | None, taints: Iterable[Object]) -> str | None:
    """Karpenter's complaint about the taints that are not tolerated, or None. ``PreferNoSchedule`` counts too."""
    given = list(tolerations or ())
    found = [f"did not tolerate taint (taint={show_taint(taint)})" for taint in taints if not tolerates(given, taint)]
    return "; ".join(found) or None


# --- pods --------------------------------------------------------------------------------------------------------


def terminal(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def active(pod: Object) -> bool:
    return not terminal(pod) and not deleting(pod)


def owned_by(pod: Object, *kinds: str) -> bool:
    return any(owner["kind"] in kinds for owner in pod["metadata"].get("ownerReferences") or [])


def provisionable(pod: Object) -> bool:
    """Marked Unschedulable by the scheduler, and not owned by another mechanism (DaemonSet, static pod, preemption)."""
    status = pod.get("status") or {}
    marked = any(
        item["type"] == "PodScheduled" and item.get("reason") == "Unschedulable"
        for item in status.get("conditions") or []
    )
    return (
        marked
        and active(pod)
        and not pod["spec"].get("nodeName")
        and not status.get("nominatedNodeName")
        and not owned_by(pod, "DaemonSet", "Node")
    )


def reschedulable(pod: Object) -> bool:
    waits = active(pod) or (owned_by(pod, "StatefulSet") and deleting(pod))
    return waits and not owned_by(pod, "DaemonSet", "Node")


def protected(pod: Object, speed: float = 1.0) -> bool:
    """Annotated against disruption: ``true``, or a duration counted from the pod's start (``IsDoNotDisruptActive``).

    What is neither protects nothing.
    """
    value = annotations_of(pod).get(DO_NOT_DISRUPT)
    if value is None or value == "true":
        return value is not None
    try:
        limit = seconds(value)
    except ValueError:
        return False
    if not limit:
        return False
    started = (pod.get("status") or {}).get("startTime")
    return started is None or (time.time() - epoch(started)) * speed < limit


def drainable(pod: Object) -> bool:
    """Karpenter waits for it: it does not tolerate the taint of a disrupted node, and is no mirror pod."""
    return not tolerates(pod["spec"].get("tolerations"), DISRUPTED_TAINT) and not owned_by(pod, "Node")


def selects(selector: Object | None, found: dict[str, str]) -> bool:
    """A LabelSelector; None selects nothing."""
    if selector is None:
        return False
    if any(found.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        value, values = found.get(rule["key"]), rule.get("values") or []
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[rule["operator"]]
        if not holds:
            return False
    return True


def repelled(pod: Object, others: Iterable[Object]) -> bool:
    """Required anti-affinity per hostname, in either direction."""
    return any(_repels(pod, other) or _repels(other, pod) for other in others)


def _repels(pod: Object, other: Object) -> bool:
    rules = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
    for term in rules.get("requiredDuringSchedulingIgnoredDuringExecution") or []:
        if term.get("topologyKey") != "kubernetes.io/hostname":
            continue
        namespaces = term.get("namespaces") or [pod["metadata"]["namespace"]]
        if term.get("namespaceSelector") == {}:
            namespaces = [other["metadata"]["namespace"]]
        if other["metadata"]["namespace"] in namespaces and selects(term.get("labelSelector"), labels(other)):
            return True
    return False
