"""The Node object as the kubelet and EKS's cloud controller make it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from sandbox.aws.shapes import Shape
from sandbox.kube.quantities import render_all
from sandbox.settings import Settings

Object = dict[str, Any]
NOT_READY_TAINT = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
UNREGISTERED_TAINT = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
POOL_TAG = "karpenter.sh/nodepool"
GROUP_TAG = "eks:nodegroup-name"
#: First Kubernetes version for which nodeadm labels nodes with NVIDIA devices at registration, whatever launched them
#: (awslabs/amazon-eks-ami v20260714 ``nodeadm/internal/kubelet/config.go``, ``labels.go``: the PCI vendor decides).
LABELS_NVIDIA_FROM = (1, 35)
GPU_PRESENT = "nvidia.com/gpu.present"
_KUBELET_PATCH = {"1.33": 5, "1.34": 4, "1.35": 2}
_NETWORK_MISSING = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
    "message:Network plugin returns error: cni plugin not initialized"
)


def tags_of(instance: Object) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags") or []}


def node_name(instance: Object) -> str:
    """EKS names nodes after their private DNS name."""
    return str(instance["PrivateDnsName"])


def provider_id(instance: Object) -> str:
    return f"aws:///{instance['Placement']['AvailabilityZone']}/{instance['InstanceId']}"


def node_of(
    instance: Object,
    shape: Shape,
    settings: Settings,
    more_labels: Mapping[str, str] | None = None,
    more_taints: Iterable[Mapping[str, str]] = (),
) -> Object:
    """What is registered: not ready, tainted as the admission plugin ``TaintNodesByCondition`` does.

    An instance that Karpenter launched also carries ``karpenter.sh/unregistered``, which its user data asks for.

    :param more_labels: and ``more_taints``: those of a managed node group.
    """
    tags = tags_of(instance)
    zone = instance["Placement"]["AvailabilityZone"]
    labels = {
        "kubernetes.io/hostname": node_name(instance),
        "kubernetes.io/arch": shape.architecture,
        "kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": shape.architecture,
        "beta.kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": shape.name,
        "beta.kubernetes.io/instance-type": shape.name,
        "topology.kubernetes.io/zone": zone,
        "topology.kubernetes.io/region": settings.region,
        "failure-domain.beta.kubernetes.io/zone": zone,
        "failure-domain.beta.kubernetes.io/region": settings.region,
        "k8s.io/cloud-provider-aws": hashlib.md5(settings.cluster_name.encode(), usedforsecurity=False).hexdigest(),
    }
    taints = [dict(NOT_READY_TAINT)]
    if tags.get(POOL_TAG):
        labels[POOL_TAG] = tags[POOL_TAG]
        taints.insert(0, dict(UNREGISTERED_TAINT))
    if tags.get(GROUP_TAG):
        labels["eks.amazonaws.com/nodegroup"] = tags[GROUP_TAG]
        spot = instance.get("InstanceLifecycle") == "spot"
        labels["eks.amazonaws.com/capacityType"] = "SPOT" if spot else "ON_DEMAND"
    if shape.gpus and tuple(int(part) for part in settings.kubernetes_version.split(".")) >= LABELS_NVIDIA_FROM:
        labels[GPU_PRESENT] = "true"
    labels |= more_labels or {}
    taints += [dict(taint) for taint in more_taints]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node_name(instance), "labels": labels},
        "spec": {"providerID": provider_id(instance), "taints": taints},
    }


def status_of(instance: Object, shape: Shape, settings: Settings, moment: str) -> Object:
    """The first status: everything but devices, which are the plugin's to announce."""
    ip = instance["PrivateIpAddress"]
    name = node_name(instance)
    return {
        "capacity": render_all(shape.capacity()),
        "allocatable": render_all(shape.allocatable()),
        "addresses": [
            {"type": "InternalIP", "address": ip},
            {"type": "InternalDNS", "address": name},
            {"type": "Hostname", "address": name},
        ],
        "conditions": conditions(False, moment, moment),
        "nodeInfo": _node_info(instance["InstanceId"], shape, settings),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
    }


def _node_info(instance_id: str, shape: Shape, settings: Settings) -> Object:
    machine = hashlib.sha256(instance_id.encode()).hexdigest()
    # The AMI's: a node that registers after an upgrade has the new one; existing nodes keep theirs.
    release = settings.control_plane
    version = f"v{release}.{_KUBELET_PATCH.get(release, 0)}-eks-9d7a4b2"

    def uuid(offset: int) -> str:
        text = machine[offset : offset + 32]
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    return {
        "machineID": "ec2" + machine[:29],
        "systemUUID": "ec2" + uuid(3)[3:],
        "bootID": uuid(32),
        "kernelVersion": "6.12.40-64.114.amzn2023." + ("aarch64" if shape.architecture == "arm64" else "x86_64"),
        "osImage": "Amazon Linux 2023.9.20260714",
        "containerRuntimeVersion": "containerd://2.1.4",
        "kubeletVersion": version,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": shape.architecture,
    }


def conditions(ready: bool, changed: str, heartbeat: str) -> list[Object]:
    """
    :param changed: when ``ready`` became so.
    :param heartbeat: now.
    """
    calm = [
        ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ]
    shown = [_condition(name, "False", reason, message, changed, heartbeat) for name, reason, message in calm]
    why = ("KubeletReady", "kubelet is posting ready status") if ready else ("KubeletNotReady", _NETWORK_MISSING)
    return [*shown, _condition("Ready", "True" if ready else "False", *why, changed, heartbeat)]


def _condition(name: str, status: str, reason: str, message: str, changed: str, heartbeat: str) -> Object:
    return {
        "type": name,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": heartbeat,
        "lastTransitionTime": changed,
    }


#: The XIDs that the EKS node monitoring agent treats as fatal to a GPU; for others it only writes an event
#: (aws/eks-node-monitoring-agent ``monitors/nvidia/dcgm/dcgm_policies.go``, WellKnownXidCodes).
TERMINAL_XIDS = frozenset(
    {46, 48, 54, 62, 63, 64, 74, 79, 95, 109, 110, 119, 120, 136, 140, 142, 143, 151, 155, 156, 158}
)
ACCELERATOR = "AcceleratedHardwareReady"


def accelerator_condition(xid: int | None, moment: str) -> Object:
    """The condition that the agent writes about the node's GPUs; without an XID, the one it writes at its start.

    Texts: ``dcgm_policies.go``, ``pkg/reasons`` and ``cmd/eks-node-monitoring-agent/main.go``.
    """
    if xid is None:
        why = ("NvidiaGPUIsReady", "Monitoring for the Nvidia GPU system is active")
    else:
        text = f"detected XID-{xid} on the instance, review kernel logs for additional information."
        why = (f"NvidiaXID{xid}Error", text)
    return _condition(ACCELERATOR, "True" if xid is None else "False", *why, moment, moment)


def xid_warning(xid: int) -> str:
    """The agent's event about an XID that is not terminal."""
    text = f"detected unknown XID-{xid} on the instance, review kernel logs for additional information."
    return f"NvidiaXID{xid}Warning: {text}"


def ready_condition(node: Object) -> Object:
    """The Ready condition as the API server shows it, or an empty one."""
    shown = (node.get("status") or {}).get("conditions") or []
    return next((item for item in shown if item["type"] == "Ready"), {})
