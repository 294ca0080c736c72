"""NVIDIA's static DaemonSet (k8s-device-plugin v0.20.0 ``deployments/static/nvidia-device-plugin.yml``): no node
selector, no config, one toleration; what eksctl installs by itself with a GPU node group."""

from __future__ import annotations

import copy
from typing import Any

NAME, NAMESPACE = "nvidia-device-plugin-daemonset", "kube-system"
_LABELS = {"name": "nvidia-device-plugin-ds"}
_FOLDER = "/var/lib/kubelet/device-plugins"

STATIC_PLUGIN: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": NAME, "namespace": NAMESPACE},
    "spec": {
        "selector": {"matchLabels": _LABELS},
        "updateStrategy": {"type": "RollingUpdate"},
        "template": {
            "metadata": {"labels": _LABELS},
            "spec": {
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "priorityClassName": "system-node-critical",
                "containers": [
                    {
                        "name": "nvidia-device-plugin-ctr",
                        "image": "nvcr.io/nvidia/k8s-device-plugin:v0.20.0",
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                        "volumeMounts": [{"name": "kubelet-device-plugins-dir", "mountPath": _FOLDER}],
                    }
                ],
                "volumes": [{"name": "kubelet-device-plugins-dir", "hostPath": {"path": _FOLDER, "type": "Directory"}}],
            },
        },
    },
}


def static_plugin(**pod: Any) -> dict[str, Any]:
    """The DaemonSet, with fields of its pods' spec replaced."""
    found = copy.deepcopy(STATIC_PLUGIN)
    found["spec"]["template"]["spec"] |= pod
    return found
