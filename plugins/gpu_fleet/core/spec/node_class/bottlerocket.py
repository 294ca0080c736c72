"""Bottlerocket's user data: settings in TOML, into which Karpenter writes its own. Pure.

Read in aws/karpenter-provider-aws v1.14.1 pkg/providers/amifamily/bootstrap/bottlerocket.go.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_fleet.core.spec.node_class.user_data import UserDataError, mapping

_SHARING = "nodePools[].sharing"
#: Settings of Bottlerocket that follow from fields of the cluster file, with the field: Karpenter overwrites them
#: (bootstrap/bottlerocket.go), or the device plugin is configured by them (bottlerocket.dev, 'kubelet-device-plugins').
_SETTINGS: Mapping[str, str] = {
    "kubernetes.api-server": "",
    "kubernetes.cluster-certificate": "",
    "kubernetes.cluster-name": "",
    "kubernetes.node-taints": "nodePools[].taints",
    "kubernetes.node-labels": "nodePools[].labels",
    "kubernetes.max-pods": "nodeClass.kubelet.maxPods",
    "kubernetes.system-reserved": "nodeClass.kubelet.systemReserved",
    "kubernetes.kube-reserved": "nodeClass.kubelet.kubeReserved",
    "kubernetes.eviction-hard": "nodeClass.kubelet.evictionHard",
    "kubernetes.eviction-soft": "nodeClass.kubelet.evictionSoft",
    "kubernetes.eviction-soft-grace-period": "nodeClass.kubelet.evictionSoftGracePeriod",
    "kubernetes.eviction-max-pod-grace-period": "nodeClass.kubelet.evictionMaxPodGracePeriod",
    "kubernetes.cluster-dns-ip": "nodeClass.kubelet.clusterDNS",
    "kubernetes.image-gc-high-threshold-percent": "nodeClass.kubelet.imageGCHighThresholdPercent",
    "kubernetes.image-gc-low-threshold-percent": "nodeClass.kubelet.imageGCLowThresholdPercent",
    "kubernetes.cpu-cfs-quota-enforced": "nodeClass.kubelet.cpuCFSQuota",
    "kubelet-device-plugins.nvidia.device-sharing-strategy": _SHARING,
    "kubelet-device-plugins.nvidia.time-slicing": _SHARING,
    "kubelet-device-plugins.nvidia.mps": _SHARING,
    "kubelet-device-plugins.nvidia.device-partitioning-strategy": "whole GPUs: this package does not prove MIG",
    "kubelet-device-plugins.nvidia.mig": "whole GPUs: this package does not prove MIG",
    "kubelet-device-plugins.nvidia.enabled": "the built-in device plugin, which serves these nodes",
    "bootstrap-commands.000-mount-instance-storage": "nodeClass.instanceStorePolicy",
}
#: What ``fastStart`` writes.
_FAST_SETTINGS = ("container-runtime.snapshotter", "container-runtime-plugins.soci-snapshotter")


def bottlerocket_settings(text: str) -> dict[str, Any]:
    """The user's settings.

    :raises UserDataError: if it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        end = len(text.splitlines())
        line = int(at[1]) if at else end
        words = re.sub(r" \(at .*\)$", "", str(error))
        raise UserDataError(
            f"not valid TOML: {words}", "correct it; a NodeConfig or a script is for AL2023", line
        ) from error


def bottlerocket_problems(text: str, *, fast_start: bool = False) -> Iterator[UserDataError]:
    """Everything that is wrong with Bottlerocket's user data.

    :param fast_start: whether the package itself chooses the snapshotter.
    """
    try:
        document = bottlerocket_settings(text)
    except UserDataError as error:
        yield error
        return
    for key in document:
        if key != "settings":
            yield UserDataError(
                f"[{key}] is not read by Bottlerocket", "put everything below [settings]", _line(text, key)
            )
    settings = mapping(document.get("settings"))
    for path, field in _SETTINGS.items():
        if _at(settings, path):
            use = f" and use {field}" if field else ": Karpenter writes it"
            yield UserDataError(
                f"settings.{path} follows from the spec", f"remove it{use}", _line(text, path.rpartition(".")[2])
            )
    for path in _FAST_SETTINGS if fast_start else ():
        if _at(settings, path):
            yield UserDataError(
                f"settings.{path} is chosen by fastStart",
                "remove it, or fastStart",
                _line(text, path.rpartition(".")[2]),
            )


def _at(settings: Mapping[str, Any], path: str) -> bool:
    *parents, last = path.split(".")
    for key in parents:
        settings = mapping(settings.get(key))
    return last in settings


def _line(text: str, key: str) -> int:
    """The line of the whole text on which a key is written; 1 if it is not found."""
    pattern = re.compile(rf"(^|[\s\[{{,.\"'-]){re.escape(str(key))}[\"']?\s*([:=\].]|$)")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.search(line):
            return number
    return 1
