"""Pods that see a node's GPUs without having requested any, as far as their spec shows.

On EKS's AL2023 images every container runs with the NVIDIA runtime (awslabs/amazon-eks-ami nodeadm
``internal/containerd/runtime_config_nvidia.go``, ``default_runtime_name``), and the NVIDIA Container Toolkit, installed
there as it comes (``templates/al2023/provisioners/install-nvidia-driver.sh``), believes the variable
``NVIDIA_VISIBLE_DEVICES`` of any container (``accept-nvidia-visible-devices-envvar-when-unprivileged``, true by
default). The device plugin passes its choice by the same variable (k8s-device-plugin ``DEVICE_LIST_STRATEGY``,
``envvar`` by default). So a pod that sets it gets GPUs that the scheduler counts as another pod's. What an *image* sets
is in no pod's spec.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.objects import Object, name_of

VARIABLE = "NVIDIA_VISIBLE_DEVICES"
#: Values of it that show no GPU (nvidia-container-toolkit, 'NVIDIA_VISIBLE_DEVICES').
_NOTHING = frozenset({"", "void", "none"})
#: Device files; a mount of one of these, or of a folder above, is enough to open a GPU.
_DEVICES = re.compile(r"^/dev/nvidia")
_ABOVE = frozenset({"/", "/dev", "/dev/"})
#: Images of agents whose task is to look at all GPUs, as NVIDIA, EKS and the GPU Operator install them.
_INFRASTRUCTURE = re.compile(
    r"k8s-device-plugin|dcgm|gpu-feature-discovery|nvidia/(cloud-native|driver|k8s/container-toolkit|gpu-operator)"
    r"|k8s-driver-manager|vgpu-|mig-parted|eks-node-monitoring-agent|neuron"
)


@dataclass(frozen=True)
class Unasked:
    """A pod that sees GPUs without having requested any.

    :ivar pod: ``namespace/name``.
    :ivar how: the part of its spec that shows it GPUs.
    :ivar certain: whether it was given GPUs by name; else it could open them.
    :ivar expected: whether it is a node agent whose task this is.
    """

    pod: str
    how: str
    certain: bool
    expected: bool

    def __str__(self) -> str:
        return f"{self.pod} ({self.how})"


def unasked(pod: Object) -> Unasked | None:
    """How a pod sees GPUs that it did not request; ``None``: not by its spec."""
    spec = pod.get("spec") or {}
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    if spec.get("resourceClaims") or any(_asks(container) for container in containers):
        return None
    named = next((words for container in containers if (words := _named(container))), "")
    mounted = next(_device_mounts(spec, containers), "")
    opens = next((words for container in containers if (words := _privileged(container))), "")
    if not (named or mounted or opens):
        return None
    # Network, storage and log agents of any cluster are privileged, or mount /dev: that alone says nothing about GPUs.
    agent = _of_daemon_set(pod)
    known = agent and any(_INFRASTRUCTURE.search(str(container.get("image", ""))) for container in containers)
    certain = bool(named) or bool(_DEVICES.match(mounted))
    how = named or (f"mounts {mounted}" if mounted else opens)
    where = f"{(pod.get('metadata') or {}).get('namespace', '')}/{name_of(pod)}"
    return Unasked(where, how, certain, known or (agent and not certain))


def _asks(container: Mapping[str, Any]) -> bool:
    resources = container.get("resources") or {}
    names = {*(resources.get("requests") or {}), *(resources.get("limits") or {})}
    return any(str(name).startswith("nvidia.com/") for name in names)


def _named(container: Mapping[str, Any]) -> str:
    for entry in container.get("env") or []:
        if entry.get("name") != VARIABLE:
            continue
        if "valueFrom" in entry:
            return f"{VARIABLE} from elsewhere"
        value = str(entry.get("value") or "")
        return "" if value in _NOTHING else f"{VARIABLE}={value[:60]}"
    return ""


def _device_mounts(spec: Mapping[str, Any], containers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The node's paths with device files that a container mounts, those of GPUs first."""
    used = {mount.get("name") for container in containers for mount in container.get("volumeMounts") or []}
    paths = [
        str((volume.get("hostPath") or {}).get("path", ""))
        for volume in spec.get("volumes") or []
        if volume.get("name") in used
    ]
    yield from (path for path in paths if _DEVICES.match(path))
    yield from (path for path in paths if path in _ABOVE)


def _privileged(container: Mapping[str, Any]) -> str:
    return "privileged" if (container.get("securityContext") or {}).get("privileged") else ""


def _of_daemon_set(pod: Object) -> bool:
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    return any(owner.get("kind") == "DaemonSet" for owner in owners)
