"""Helm values of the releases, from the spec: base values of ``include/helm``, what follows from the spec, then the
spec's own extra values, merged last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gpu_fleet.core.kubernetes.names import (
    GPU_RESOURCE,
    LABEL_DEVICE_PLUGIN,
    RUNTIME_CLASS_NAME,
    SERVED,
    TAINT_QUARANTINED,
)
from gpu_fleet.core.manifests.build import UNPROVEN, pool_taints
from gpu_fleet.core.manifests.in_use import NOTHING_IN_USE, InUse, served_entries, toleration
from gpu_fleet.core.manifests.overlays import overlays_used
from gpu_fleet.core.manifests.plugin_entries import EXCLUSIVE, entry_config, entry_text
from gpu_fleet.core.manifests.templates import template
from gpu_fleet.core.spec import ClusterSpec

Component = Literal["karpenter-crd", "karpenter", "device-plugin"]

DEFAULT_CONFIG_ENTRY = EXCLUSIVE


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge as Helm does with several values files: maps are merged, lists and scalars replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def plugin_configs(spec: ClusterSpec, in_use: InUse = NOTHING_IN_USE) -> dict[str, dict[str, Any]]:
    """The device plugin's configs: ``exclusive``, one entry per distinct sharing, and those that living nodes carry
    although the cluster file no longer has them.
    """
    entries = {DEFAULT_CONFIG_ENTRY, *served_entries(spec), *in_use.entries}
    return {entry: entry_config(entry) for entry in sorted(entries)}


def plugin_tolerations(spec: ClusterSpec, in_use: InUse = NOTHING_IN_USE) -> list[dict[str, str]]:
    """A toleration per distinct taint of the pools and of living nodes, plus the one for GPU nodes that others have
    tainted with ``nvidia.com/gpu``.
    """
    tolerations: list[dict[str, str]] = [
        toleration(GPU_RESOURCE, "NoSchedule"),
        # Without its plugin a quarantined node could never pass again.
        toleration(TAINT_QUARANTINED, "NoSchedule"),
    ]
    served = [pool for pool in spec.node_pools if not pool.built_in_plugin]
    wanted = [(taint["key"], taint["effect"]) for pool in served for taint in pool_taints(pool)]
    # Without its plugin a node of a gated pool could never be proven.
    wanted += [(UNPROVEN["key"], UNPROVEN["effect"]) for pool in served if spec.gated(pool)][:1]
    for key, effect in [*wanted, *in_use.taints]:
        if toleration(key, effect) not in tolerations:
            tolerations.append(toleration(key, effect))
    return tolerations


def plugin_affinity() -> dict[str, Any]:
    """The affinity of all DaemonSets of the release: only nodes with our label, as their node selector has it."""
    mine = {"matchExpressions": [{"key": LABEL_DEVICE_PLUGIN, "operator": "In", "values": [SERVED]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [mine]}}}


def _device_plugin(spec: ClusterSpec, in_use: InUse) -> dict[str, Any]:
    plugin = spec.device_plugin
    derived = {
        "config": {
            "map": {entry: entry_text(entry) for entry in plugin_configs(spec, in_use)},
            "default": DEFAULT_CONFIG_ENTRY,
        },
        "runtimeClassName": RUNTIME_CLASS_NAME,
        "deviceListStrategy": plugin.device_list_strategy,
        # A label of our own: nvidia.com/gpu.present is on every team's GPU nodes (nodeadm, from Kubernetes 1.35 on).
        "nodeSelector": {LABEL_DEVICE_PLUGIN: SERVED},
        # This replaces the chart's own terms (a list replaces a list), on which the package does not rely.
        "affinity": plugin_affinity(),
        "tolerations": plugin_tolerations(spec, in_use),
    }
    if in_use.mps or any(pool.mps for pool in spec.node_pools):
        # Without the host's process ids the control daemon cannot distinguish its clients, and no GPU is registered.
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


def helm_values(spec: ClusterSpec, component: Component, *, in_use: InUse = NOTHING_IN_USE) -> dict[str, Any]:
    """The values of a component's release; equal specs and uses give equal values.

    :param in_use: what living nodes carry, which the device plugin's release must keep.
    :raises ValueError: for an unknown component.
    """
    if component == "karpenter-crd":
        return template("helm/karpenter-crd")
    if component == "karpenter":
        return _karpenter(spec)
    if component == "device-plugin":
        return _device_plugin(spec, in_use)
    raise ValueError(f"no Helm values for component {component!r}; one of karpenter-crd, karpenter, device-plugin")
