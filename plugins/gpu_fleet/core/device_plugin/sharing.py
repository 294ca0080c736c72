"""How a device plugin of others is configured for a pool: checked, never written. Pure.

The config's form is NVIDIA/k8s-device-plugin v0.20.0 ``api/config/v1``; how an entry is picked is
``cmd/config-manager/main.go``: the node's label, else the default, else an entry named ``default``, else the only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from gpu_fleet.core.device_plugin.detect import DaemonSetPlugin
from gpu_fleet.core.kubernetes.names import GPU_RESOURCE, LABEL_PLUGIN_CONFIG
from gpu_fleet.core.manifests.plugin_entries import entry_config

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool

MISSING, DIFFERS, UNSHARED = "ConfigEntryMissing", "ConfigEntryDiffers", "SharingNotConfigured"


@dataclass(frozen=True)
class ConfigProblem:
    """
    :ivar reason: :data:`MISSING`, :data:`DIFFERS` or :data:`UNSHARED`.
    """

    reason: str
    message: str


def config_problem(
    pool: NodePool, plugin: DaemonSetPlugin, config_map: Mapping[str, Any] | None, label: str | None
) -> ConfigProblem | None:
    """Why a plugin would not share the GPUs of a pool as promised; ``None`` if it would.

    :param config_map: the plugin's ConfigMap; ``None`` if it does not exist, or the plugin has none.
    :param label: the value of ``nvidia.com/device-plugin.config`` on the pool's nodes.
    """
    if not plugin.found.config_map:
        if not pool.shared:
            return None
        return ConfigProblem(
            UNSHARED,
            f"{plugin} serves pool {pool.name} and has no config file: it offers each GPU once, not {pool.replicas} "
            f"times; give it a ConfigMap with\n{entry_text(pool)}",
        )
    where = f"ConfigMap {plugin.namespace}/{plugin.found.config_map}"
    if config_map is None:
        return ConfigProblem(MISSING, f"{where}, which {plugin} mounts, does not exist; its pods cannot start")
    data = {str(key): str(value) for key, value in (config_map.get("data") or {}).items()}
    entry = picked(data, label if plugin.found.by_label else None, plugin.found.default)
    if entry is None or entry not in data:
        named = entry or label or ""
        return ConfigProblem(
            MISSING,
            f"{where} of {plugin} has no entry {named!r}, which nodes of pool {pool.name} ask for by their label "
            f"{LABEL_PLUGIN_CONFIG}: the plugin's pods would crash there; add\n{entry_text(pool, named)}\nor set "
            f"nodePools[].labels: {{{LABEL_PLUGIN_CONFIG}: <one of: {', '.join(sorted(data)) or 'none'}>}}",
        )
    found = sharing_words(data[entry])
    wanted = sharing_words(entry_text(pool))
    if found == wanted:
        return None
    return ConfigProblem(
        DIFFERS,
        f"entry {entry!r} of {where}, which {plugin} uses on nodes of pool {pool.name}, says {found}; the spec "
        f"promises {wanted}; change the entry to\n{entry_text(pool)}\nor the pool's sharing in the spec",
    )


def picked(data: Mapping[str, str], label: str | None, default: str) -> str | None:
    """The entry that a node gets; ``None`` if none is picked."""
    if label:
        return label
    if default:
        return default
    if "default" in data:
        return "default"
    return next(iter(data)) if len(data) == 1 else None


def entry_text(pool: NodePool, name: str = "") -> str:
    """The config that the pool's sharing needs, as YAML; with a name as an entry of a ConfigMap's data."""
    config: dict[str, Any] = {"version": "v1"}
    if pool.shared:
        config["sharing"] = entry_config(pool.config_entry)["sharing"]
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=False)
    if not name:
        return text.rstrip()
    return f"{name}: |\n" + "\n".join(f"  {line}" for line in text.rstrip().splitlines())


def sharing_words(text: str) -> str:
    """The effect of a config on the resource, in words; equal effects have equal words."""
    try:
        document = yaml.safe_load(text) or {}
        sharing = document.get("sharing") or {}
        for key, name in (("mps", "MPS"), ("timeSlicing", "time-slicing")):
            block = sharing.get(key) or {}
            for resource in block.get("resources") or []:
                if resource.get("name") != GPU_RESOURCE:
                    continue
                renamed = bool(block.get("renameByDefault")) or resource.get("rename")
                words = f"{name}, {int(resource['replicas'])} per GPU"
                if key == "timeSlicing" and not block.get("failRequestsGreaterThanOne"):
                    words += ", requests for several allowed"
                return f"{words}, under another name than {GPU_RESOURCE}" if renamed else words
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return "something that cannot be read"
    return "exclusive GPUs"
