"""What a node of a gated pool shows about its proof: our startup taint, and the node condition. Pure.

The taint keeps users' pods away, the condition says why, since when, and by which run, to ``kubectl describe node``,
to the Node Readiness Controller (kubernetes-sigs/node-readiness-controller: its rules name a condition and the status
that it must have) and to whatever else reads nodes.

A foreign condition stays: the kubelet changes the conditions of its own types and leaves all others as they are
(kubernetes v1.36 ``pkg/kubelet/kubelet_node_status.go``, ``defaultNodeStatusFuncs``, and ``pkg/kubelet/nodestatus``),
and sends what it changed as a strategic merge patch, which merges conditions by their type
(``staging/src/k8s.io/api/core/v1/types.go``: ``patchMergeKey=type``). So do we: the status of a node is never replaced.
Karpenter's node repair acts on the conditions of its cloud provider alone (aws/karpenter-provider-aws v1.14.1
``pkg/cloudprovider/cloudprovider.go``, ``RepairPolicies``); ours is not among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.names import CONDITION_PROVEN, TAINT_UNPROVEN
from gpu_fleet.core.kubernetes.objects import Object, condition

#: Reasons of the condition. One of a node that failed its proof has the reason of the check that failed.
PASSED, PENDING = "ProofPassed", "ProofPending"
OVERDUE, ADMITTED_UNPROVEN = "ProofOverdue", "AdmittedUnproven"
#: The API server takes longer messages; nobody reads them in ``kubectl describe``.
_MAX_MESSAGE = 500


class Proven(StrEnum):
    """The status of the condition."""

    YES = "True"
    NO = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class Proof:
    """What a node's condition says.

    :ivar reason: CamelCase; of a node that failed, the reason of the check that failed.
    """

    status: Proven
    reason: str
    message: str = ""


def proof_of(node: Object) -> Proof | None:
    """The condition of a node; ``None`` without one, or with a status that Kubernetes does not have."""
    found = condition(node, CONDITION_PROVEN)
    if found is None or found.get("status") not in list(Proven):
        return None
    return Proof(Proven(str(found["status"])), str(found.get("reason", "")), str(found.get("message", "")))


def is_unproven(node: Object) -> bool:
    """Whether a node still has our startup taint."""
    return any(taint.get("key") == TAINT_UNPROVEN for taint in (node.get("spec") or {}).get("taints") or [])


def is_kept_closed(node: Object) -> bool:
    """Whether a node stays closed until another proof passes: it failed one, or none was possible in time."""
    found = proof_of(node)
    return is_unproven(node) and found is not None and (found.status is Proven.NO or found.reason == OVERDUE)


def marked(node: Object, proof: Proof, now: float) -> dict[str, Any] | None:
    """The strategic merge patch of a node's *status* that makes its condition say this; ``None`` if it says so already.

    A proof is written anew each time that it is made: ``lastHeartbeatTime`` is the time of the last one.

    :param now: epoch seconds by the API server's clock.
    """
    before = condition(node, CONDITION_PROVEN) or {}
    message = proof.message[:_MAX_MESSAGE]
    said = Proof(proof.status, proof.reason, message)
    if proof.status is Proven.UNKNOWN and proof_of(node) == said:
        return None
    at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    same = before.get("status") == str(proof.status)
    entry = {
        "type": CONDITION_PROVEN,
        "status": str(proof.status),
        "reason": proof.reason,
        "message": message,
        "lastHeartbeatTime": at,
        "lastTransitionTime": before.get("lastTransitionTime", at) if same else at,
    }
    return {"status": {"conditions": [entry]}}


def opened(node: Object) -> dict[str, Any] | None:
    """The merge patch that removes our startup taint; ``None`` if it is gone.

    It carries the version that was read: taints are one list, which other controllers write as well.
    """
    if not is_unproven(node):
        return None
    taints = [taint for taint in (node.get("spec") or {})["taints"] if taint.get("key") != TAINT_UNPROVEN]
    return {
        "metadata": {"resourceVersion": (node.get("metadata") or {}).get("resourceVersion")},
        "spec": {"taints": taints or None},
    }
