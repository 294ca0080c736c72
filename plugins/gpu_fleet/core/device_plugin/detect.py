"""Which pods are device plugins for ``nvidia.com/gpu``, recognized by their specs, whoever manages them. Pure.

All plugins for one resource share one socket below :data:`PLUGIN_FOLDER`. NVIDIA's removes an existing socket before it
listens, so of two on a node the one that started last serves the GPUs; and when either of them goes away, the kubelet
withdraws the resource until one starts again (NVIDIA/k8s-device-plugin v0.20.0 ``internal/plugin/server.go``;
kubernetes ``pkg/kubelet/cm/devicemanager``, PluginDisconnected).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.names import DEVICE_PLUGIN_RELEASE
from gpu_fleet.core.kubernetes.objects import Object, annotations_of, name_of

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: Where device plugins register and keep their sockets (kubernetes pkg/kubelet/apis/deviceplugin/v1beta1).
PLUGIN_FOLDER = "/var/lib/kubelet/device-plugins"

#: Images that serve NVIDIA's GPUs: NVIDIA's own, also from mirrors, and images built on it.
_NVIDIA = re.compile(
    r"(^|/)(k8s-device-plugin|nvidia-device-plugin|nvidia-gpu-device-plugin|vgpu-device-plugin|volcano-vgpu-device-plugin"
    r"|hami)(:|@|$)"
)
#: Device plugins that serve other hardware and may run beside ours: EFA, Neuron, AMD, Intel, RDMA, SR-IOV.
_OTHER_HARDWARE = re.compile(
    r"(efa-k8s-device-plugin|neuron-device-plugin|rocm/|amdgpu|(^|/)intel-[a-z-]+-plugin|rdma-shared-dev-plugin"
    r"|sriov-network-device-plugin)"
)
#: Programs of NVIDIA's image that register nothing.
_COMPANIONS = frozenset({"gpu-feature-discovery", "mps-control-daemon", "config-manager"})

_RELEASE_NAME, _RELEASE_NAMESPACE = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"


class Evidence(StrEnum):
    """Why something counts as a device plugin."""

    IMAGE = "image"
    #: It can write to the kubelet's device-plugin folder; what it registers is not known.
    FOLDER = "folder"
    #: It mounts a parent of the folder: so do CSI drivers and node agents, hence this alone proves nothing.
    PARENT = "parent"


@dataclass(frozen=True)
class PluginSpec:
    """What a pod's spec says about the device plugin in it.

    :ivar image: image of the container by which it was recognized.
    :ivar config_map: the ConfigMap with its configuration, empty if it has none.
    :ivar by_label: whether NVIDIA's config-manager picks the entry by the label ``nvidia.com/device-plugin.config``.
    :ivar default: the entry that nodes without that label get.
    """

    evidence: Evidence
    image: str
    config_map: str = ""
    by_label: bool = False
    default: str = ""


@dataclass(frozen=True)
class DaemonSetPlugin:
    """A DaemonSet that is, or may be, a device plugin.

    :ivar pod: the spec of its pods.
    :ivar owner: the object that created it and would revert changes, such as ``ClusterPolicy cluster-policy``, or
        empty.
    """

    namespace: str
    name: str
    found: PluginSpec
    pod: Mapping[str, Any]
    owner: str = ""

    def __str__(self) -> str:
        return f"DaemonSet {self.namespace}/{self.name}"

    @property
    def ref(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def certain(self) -> bool:
        """Whether it counts as a device plugin: by its image, or because it can write to the folder."""
        return self.found.evidence is not Evidence.PARENT


def plugin_in(pod: Mapping[str, Any]) -> PluginSpec | None:
    """The device plugin in the spec of a pod, or ``None``."""
    containers = [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]
    volumes = {str(volume.get("name")): volume for volume in pod.get("volumes") or []}
    found: tuple[Evidence, str] | None = None
    for container in pod.get("containers") or []:
        image = str(container.get("image", ""))
        if _OTHER_HARDWARE.search(image):
            continue
        evidence = _evidence(container, image, volumes)
        if evidence is not None and (found is None or _RANK[evidence] < _RANK[found[0]]):
            found = evidence, image
    if found is None:
        return None
    managers = [container for container in containers if _program(container) == "config-manager"]
    env = {str(e.get("name")): str(e.get("value", "")) for c in managers for e in c.get("env") or []}
    return PluginSpec(*found, _config_map(containers, volumes), bool(managers), env.get("DEFAULT_CONFIG", ""))


_RANK = {Evidence.IMAGE: 0, Evidence.FOLDER: 1, Evidence.PARENT: 2}


def _evidence(container: Mapping[str, Any], image: str, volumes: Mapping[str, Any]) -> Evidence | None:
    mounted = _mounted(container, volumes)
    if _NVIDIA.search(image):
        return None if _program(container) in _COMPANIONS else Evidence.IMAGE
    return mounted


def _program(container: Mapping[str, Any]) -> str:
    command = container.get("command") or container.get("args") or [""]
    return posixpath.basename(str(command[0]))


def _mounted(container: Mapping[str, Any], volumes: Mapping[str, Any]) -> Evidence | None:
    """Whether the container can create a socket in the folder, which takes a writable mount."""
    best: Evidence | None = None
    for mount in container.get("volumeMounts") or []:
        path = ((volumes.get(str(mount.get("name"))) or {}).get("hostPath") or {}).get("path")
        if not path or mount.get("readOnly"):
            continue
        host = posixpath.normpath(posixpath.join(str(path), str(mount.get("subPath") or "")))
        if host == PLUGIN_FOLDER:
            return Evidence.FOLDER
        if PLUGIN_FOLDER.startswith(host.rstrip("/") + "/"):
            best = Evidence.PARENT
    return best


def _config_map(containers: Iterable[Mapping[str, Any]], volumes: Mapping[str, Any]) -> str:
    for container in containers:
        for mount in container.get("volumeMounts") or []:
            source = (volumes.get(str(mount.get("name"))) or {}).get("configMap")
            if source:
                return str(source.get("name", ""))
    return ""


def daemon_set_plugins(daemon_sets: Iterable[Object]) -> list[DaemonSetPlugin]:
    """Those of the DaemonSets that are, or may be, device plugins for NVIDIA's GPUs."""
    found = []
    for item in daemon_sets:
        pod = ((item.get("spec") or {}).get("template") or {}).get("spec") or {}
        plugin = plugin_in(pod)
        if plugin is not None:
            metadata = item.get("metadata") or {}
            owners = [owner for owner in metadata.get("ownerReferences") or [] if owner.get("controller")]
            owner = f"{owners[0].get('kind')} {owners[0].get('name')}" if owners else ""
            found.append(DaemonSetPlugin(str(metadata.get("namespace", "")), name_of(item), plugin, pod, owner))
    return sorted(found, key=lambda plugin: (plugin.namespace, plugin.name))


@dataclass(frozen=True)
class Ours:
    """Which device plugins do not count as those of others.

    :ivar namespace: namespace of the release that the package manages; ``None`` where the plugin belongs to others.
    :ivar coexists_with: ``namespace/name`` of DaemonSets that do not serve ``nvidia.com/gpu`` according to the cluster
        file; one with NVIDIA's image counts all the same.
    """

    namespace: str | None
    coexists_with: Collection[str] = ()

    @classmethod
    def of(cls, spec: ClusterSpec) -> Ours:
        plugin = spec.device_plugin
        return cls(plugin.namespace if plugin.manage else None, plugin.coexists_with)

    def to_json(self) -> dict[str, Any]:
        return {"namespace": self.namespace, "coexistsWith": sorted(self.coexists_with)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ours:
        return cls(value.get("namespace"), frozenset(value.get("coexistsWith") or ()))

    def includes(self, item: Object) -> bool:
        """Whether an object belongs to the release (Helm annotates everything that it creates)."""
        annotations = annotations_of(item)
        return (
            self.namespace is not None
            and annotations.get(_RELEASE_NAME) == DEVICE_PLUGIN_RELEASE
            and annotations.get(_RELEASE_NAMESPACE) == self.namespace
        )

    def vouches_for(self, plugin: DaemonSetPlugin) -> bool:
        return plugin.found.evidence is not Evidence.IMAGE and plugin.ref in self.coexists_with


def plugins_of_others(daemon_sets: Iterable[Object], ours: Ours) -> list[DaemonSetPlugin]:
    """Every DaemonSet that counts as a device plugin and is not ours."""
    strangers = daemon_set_plugins(item for item in daemon_sets if not ours.includes(item))
    return [plugin for plugin in strangers if plugin.certain and not ours.vouches_for(plugin)]
