"""DaemonSets and custom resources of others, as a cluster shows them."""

from __future__ import annotations

import copy
from typing import Any

PLUGINS = "/var/lib/kubelet/device-plugins"
NVIDIA_IMAGE = "nvcr.io/nvidia/k8s-device-plugin:v0.20.0"
TOLERATES_GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def daemon_set(
    name: str,
    namespace: str = "kube-system",
    *,
    image: str = NVIDIA_IMAGE,
    command: list[str] | None = None,
    mounts: str | None = PLUGINS,
    read_only: bool = False,
    config_map: str = "",
    managed: bool = False,
    default: str = "",
    release: tuple[str, str] | None = None,
    owner: str = "",
    **pod: Any,
) -> dict[str, Any]:
    """
    :param mounts: host path.
    :param managed: with NVIDIA's config-manager.
    :param release: Helm's name and namespace.
    :param owner: kind of the controller that made it.
    """
    container: dict[str, Any] = {"name": "main", "image": image, "volumeMounts": []}
    if command:
        container["command"] = command
    volumes: list[dict[str, Any]] = []
    if mounts:
        container["volumeMounts"].append({"name": "host", "mountPath": mounts, "readOnly": read_only})
        volumes.append({"name": "host", "hostPath": {"path": mounts}})
    if config_map:
        container["volumeMounts"].append({"name": "available-configs", "mountPath": "/available-configs"})
        volumes.append({"name": "available-configs", "configMap": {"name": config_map}})
    spec: dict[str, Any] = {"tolerations": [TOLERATES_GPU], "containers": [container], "volumes": volumes, **pod}
    if managed:
        env = [{"name": "DEFAULT_CONFIG", "value": default}]
        spec["initContainers"] = [{"name": "init", "image": image, "command": ["config-manager"], "env": env}]
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "uid": f"uid-{name}"}
    if release:
        metadata["annotations"] = {
            "meta.helm.sh/release-name": release[0],
            "meta.helm.sh/release-namespace": release[1],
        }
    if owner:
        metadata["ownerReferences"] = [{"kind": owner, "name": "policy", "controller": True}]
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def static(**pod: Any) -> dict[str, Any]:
    """NVIDIA's static DaemonSet (k8s-device-plugin v0.20.0 deployments/static/nvidia-device-plugin.yml)."""
    return daemon_set("nvidia-device-plugin-daemonset", **pod)


def ours(**pod: Any) -> dict[str, Any]:
    """The DaemonSet of the release that the package installs."""
    where = "nvidia-device-plugin"
    return daemon_set(where, where, release=(where, where), config_map="configs", managed=True, **pod)


def pod_of(
    owner: dict[str, Any], node: str, name: str = "", *, created: str = "2026-01-01T00:00:00Z"
) -> dict[str, Any]:
    """The DaemonSet's pod on a node, Ready."""
    metadata = owner["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or f"{metadata['name']}-abcde",
            "namespace": metadata["namespace"],
            "creationTimestamp": created,
            "ownerReferences": [
                {"kind": "DaemonSet", "name": metadata["name"], "uid": metadata["uid"], "controller": True}
            ],
        },
        "spec": {**copy.deepcopy(owner["spec"]["template"]["spec"]), "nodeName": node},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": created}],
            "containerStatuses": [{"name": "main", "state": {"running": {"startedAt": created}}}],
        },
    }


def policy(kind: str = "ClusterPolicy", version: str = "v1", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": f"nvidia.com/{version}", "kind": kind, "metadata": {"name": "policy"}, "spec": spec}


def config_map(**entries: str) -> dict[str, Any]:
    return {"data": {key.replace("_", "-"): value for key, value in entries.items()}}


def slicing(replicas: int, *, refuse: bool = True, name: str = "nvidia.com/gpu", **more: Any) -> str:
    """A config of the plugin with time-slicing, as JSON, which is YAML."""
    import json

    block = {"failRequestsGreaterThanOne": refuse, "resources": [{"name": name, "replicas": replicas}], **more}
    return json.dumps({"version": "v1", "sharing": {"timeSlicing": block}})
