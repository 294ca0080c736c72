"""Helm values of the releases, from the spec: base values of ``include/helm``, what follows from the spec, then the
spec's own extra values, merged last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import yaml

from gpu_fleet.core.manifests import pool_taints
from gpu_fleet.core.names import GPU_RESOURCE, LABEL_DEVICE_PLUGIN, RUNTIME_CLASS_NAME, SERVED, TAINT_QUARANTINED
from gpu_fleet.core.overlays import overlays_used
from gpu_fleet.core.spec import ClusterSpec, Mps, NodePool, TimeSlicing
from gpu_fleet.core.templates import template

Component = Literal["karpenter-crd", "karpenter", "device-plugin"]

#: The entry for whole GPUs: always there, and the default, so a node without the label is never shared by accident.
DEFAULT_CONFIG_ENTRY = "exclusive"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge as Helm does with several values files: maps are merged, lists and scalars replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def sharing_block(pool: NodePool) -> dict[str, Any]:
    """The ``sharing`` block of a shared pool.

    Under MPS ``failRequestsGreaterThanOne`` is not the user's to set: the plugin sets it itself (release 0.15.0).
    """
    resources = [{"name": GPU_RESOURCE, "replicas": pool.replicas}]
    match pool.sharing:
        case TimeSlicing(fail_requests_greater_than_one=refuse):
            return {
                "timeSlicing": {
                    "renameByDefault": False,
                    "failRequestsGreaterThanOne": refuse,
                    "resources": resources,
                }
            }
        case Mps():
            return {"mps": {"renameByDefault": False, "resources": resources}}
    raise ValueError(f"pool {pool.name} shares nothing")


def plugin_configs(spec: ClusterSpec) -> dict[str, dict[str, Any]]:
    """The device plugin's configs: one entry per distinct sharing, ``exclusive`` always among them.

    ``replicas`` must be at least 2 (the plugin refuses 1 on the node), so exclusive use has no ``sharing`` at all.
    Source: NVIDIA/k8s-device-plugin v0.20.0 api/config/v1.
    """
    base: dict[str, Any] = {"version": "v1", "flags": {"migStrategy": "none", "failOnInitError": True}}
    configs = {DEFAULT_CONFIG_ENTRY: base}
    for pool in spec.node_pools:
        if pool.shared:
            configs[pool.config_entry] = {**base, "sharing": sharing_block(pool)}
    return {key: configs[key] for key in sorted(configs)}


def plugin_tolerations(spec: ClusterSpec) -> list[dict[str, str]]:
    """A toleration per distinct taint of the pools, plus the one for GPU nodes that others tainted the usual way."""
    tolerations: list[dict[str, str]] = [
        {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"},
        # A quarantined node whose plugin is not allowed back could never pass again.
        {"key": TAINT_QUARANTINED, "operator": "Exists", "effect": "NoSchedule"},
    ]
    for pool in spec.node_pools:
        for taint in pool_taints(pool):
            wanted = {"key": taint["key"], "operator": "Exists", "effect": taint["effect"]}
            if wanted not in tolerations:
                tolerations.append(wanted)
    return tolerations


def plugin_affinity() -> dict[str, Any]:
    """The affinity of all DaemonSets of the release: only nodes with our label, as their node selector has it."""
    mine = {"matchExpressions": [{"key": LABEL_DEVICE_PLUGIN, "operator": "In", "values": [SERVED]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [mine]}}}


def _device_plugin(spec: ClusterSpec) -> dict[str, Any]:
    plugin = spec.device_plugin
    derived = {
        "config": {
            "map": {
                key: yaml.safe_dump(config, sort_keys=False, default_flow_style=False)
                for key, config in plugin_configs(spec).items()
            },
            "default": DEFAULT_CONFIG_ENTRY,
        },
        "runtimeClassName": RUNTIME_CLASS_NAME,
        "deviceListStrategy": plugin.device_list_strategy,
        # By a label of our own: nvidia.com/gpu.present is on every team's GPU nodes (nodeadm, from Kubernetes 1.35 on).
        "nodeSelector": {LABEL_DEVICE_PLUGIN: SERVED},
        # Instead of the chart's own terms, of which none is ours to rely on: a list replaces a list.
        "affinity": plugin_affinity(),
        "tolerations": plugin_tolerations(spec),
    }
    if any(pool.mps for pool in spec.node_pools):
        # Without the host's process ids the control daemon cannot tell its clients apart, and no GPU registers.
        derived["mps"] = {"enableHostPID": True}
    return merge(merge(template("helm/device-plugin"), derived), plugin.values)


def _karpenter(spec: ClusterSpec) -> dict[str, Any]:
    karpenter = spec.karpenter
    settings: dict[str, Any] = {"clusterName": spec.cluster.name}
    if karpenter.interruption_queue:
        settings["interruptionQueue"] = karpenter.interruption_queue
    if overlays_used(spec):
        settings["featureGates"] = {"nodeOverlay": True}
    derived = {"replicas": karpenter.replicas, "settings": merge(settings, karpenter.settings)}
    return merge(merge(template("helm/karpenter"), derived), karpenter.values)


def helm_values(spec: ClusterSpec, component: Component) -> dict[str, Any]:
    """The values of a component's release; equal specs give equal values.

    :raises ValueError: for an unknown component.
    """
    if component == "karpenter-crd":
        return template("helm/karpenter-crd")
    if component == "karpenter":
        return _karpenter(spec)
    if component == "device-plugin":
        return _device_plugin(spec)
    raise ValueError(f"no Helm values for component {component!r}; one of karpenter-crd, karpenter, device-plugin")
