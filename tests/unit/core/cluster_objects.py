"""Nodes, NodeClaims, pods and events as an API server shows them: shapes and texts measured on real ones."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

#: The moment at which tests look.
NOW = 1_790_000_000.0
POOL = "shared-a10g"


def stamp(seconds: float) -> str:
    """RFC 3339 with whole seconds, as the API writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node(
    name: str = "ip-10-0-0-1.us-west-2.compute.internal",
    *,
    gpus: int | None = 4,
    ready: bool = True,
    ready_for: float = 600.0,
    initialized: bool = True,
    cordoned: bool = False,
    taints: tuple[str, ...] = (),
    deleting: bool = False,
    pool: str = POOL,
    annotations: dict[str, str] | None = None,
    standing: bool = False,
) -> dict[str, Any]:
    labels = {
        "karpenter.sh/nodepool": pool,
        "node.kubernetes.io/instance-type": "g5.xlarge",
        "topology.kubernetes.io/zone": "us-west-2a",
        "karpenter.sh/capacity-type": "spot",
        "kubernetes.io/hostname": name,
    }
    if standing:
        labels["gpu-fleet.io/standing"] = "true"
    if initialized:
        labels["karpenter.sh/initialized"] = "true"
    metadata: dict[str, Any] = {"name": name, "labels": labels, "annotations": annotations or {}}
    metadata["creationTimestamp"] = stamp(NOW - ready_for - 10)
    if deleting:
        metadata["deletionTimestamp"] = stamp(NOW)
    allocatable = {"cpu": "4", "memory": "15Gi"}
    if gpus is not None:
        allocatable["nvidia.com/gpu"] = str(gpus)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": {
            "providerID": f"aws:///us-west-2a/i-{name[3:11].replace('-', '')}",
            "unschedulable": cordoned,
            "taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]
            + [{"key": key, "effect": "NoSchedule"} for key in taints],
        },
        "status": {
            "allocatable": allocatable,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "reason": "KubeletReady" if ready else "KubeletNotReady",
                    "message": "kubelet is posting ready status" if ready else "container runtime is down",
                    "lastTransitionTime": stamp(NOW - ready_for),
                }
            ],
        },
    }


def claim(
    name: str = "shared-a10g-abcde",
    *,
    node_name: str = "ip-10-0-0-1.us-west-2.compute.internal",
    waiting: tuple[str, str, str] | None = None,
    since: float = 5.0,
    deleting: bool = False,
    pool: str = POOL,
) -> dict[str, Any]:
    conditions = []
    reached = False
    for kind in ("Launched", "Registered", "Initialized", "Ready"):
        entry = {
            "type": kind,
            "status": "True",
            "reason": kind,
            "message": "",
            "lastTransitionTime": stamp(NOW - since),
        }
        if waiting is not None and kind == waiting[0]:
            reached = True
            entry |= {"status": "Unknown", "reason": waiting[1], "message": waiting[2]}
        elif reached:
            entry |= {"status": "Unknown", "reason": "AwaitingReconciliation", "message": "object is awaiting"}
        conditions.append(entry)
    metadata: dict[str, Any] = {"name": name, "labels": {"karpenter.sh/nodepool": pool}}
    if deleting:
        metadata["deletionTimestamp"] = stamp(NOW)
    status: dict[str, Any] = {"conditions": conditions}
    if node_name:
        status["nodeName"] = node_name
    return {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": metadata, "status": status}


def placeholder(
    index: int = 0, *, node_name: str = "", phase: str = "Pending", deleting: bool = False, pool: str = POOL
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": f"placeholder-{pool}-{index}",
        "namespace": "gpu-fleet-system",
        "uid": f"uid-placeholder-{index}",
        "creationTimestamp": stamp(NOW - 10),
        "labels": {"gpu-fleet.io/component": "placeholder", "gpu-fleet.io/pool": pool},
    }
    if deleting:
        metadata["deletionTimestamp"] = stamp(NOW)
    spec: dict[str, Any] = {"containers": [{"resources": {"requests": {"nvidia.com/gpu": "1"}}}]}
    if node_name:
        spec["nodeName"] = node_name
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": phase}}


def user_pod(name: str = "training", *, node_name: str = "", gpus: int = 1, phase: str = "Running") -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}]}
    if node_name:
        spec["nodeName"] = node_name
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "team-a", "uid": f"uid-{name}"},
        "spec": spec,
        "status": {"phase": phase},
    }


def plugin_pod(
    node_name: str = "ip-10-0-0-1.us-west-2.compute.internal",
    *,
    ready: bool = True,
    serving_for: float = 500.0,
    waiting: tuple[str, str] | None = None,
    restarts: int = 0,
    age: float = 550.0,
    owner: str = "nvidia-device-plugin",
) -> dict[str, Any]:
    state: dict[str, Any] = {"running": {"startedAt": stamp(NOW - serving_for)}}
    if waiting:
        state = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{owner}-x7k2p",
            "namespace": "nvidia-device-plugin",
            "creationTimestamp": stamp(NOW - age),
            "ownerReferences": [{"kind": "DaemonSet", "name": owner}],
        },
        "spec": {"nodeName": node_name},
        "status": {
            "phase": "Running" if not waiting else "Pending",
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready and not waiting else "False",
                    "lastTransitionTime": stamp(NOW - serving_for),
                }
            ],
            "containerStatuses": [{"name": "ctr", "restartCount": restarts, "state": state}],
        },
    }


def event(
    reason: str,
    message: str,
    *,
    kind: str = "Pod",
    uid: str = "uid-placeholder-0",
    component: str = "karpenter",
    ago: float = 3.0,
    about: str = "shared-a10g-abcde",
) -> dict[str, Any]:
    """:param about: name of the object that it is about."""
    return {
        "kind": "Event",
        "metadata": {"name": f"e.{ago}", "creationTimestamp": stamp(NOW - ago)},
        "involvedObject": {"kind": kind, "uid": uid, "name": about},
        "reason": reason,
        "message": message,
        "source": {"component": component},
        "lastTimestamp": stamp(NOW - ago),
    }
