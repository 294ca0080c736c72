"""The device plugin's config entries. An entry can be built from its name alone.

``exclusive``, ``time-slicing-4``, ``time-slicing-4-any`` (a container may ask for several shares), ``mps-4``. A node
carries the name in its label ``nvidia.com/device-plugin.config`` as long as it exists, even if the cluster file
changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from gpu_fleet.core.kubernetes.names import GPU_RESOURCE

#: The entry for whole GPUs. It always exists and is the default, so a node without the label is never shared by
#: accident.
EXCLUSIVE = "exclusive"

_SHARED = re.compile(r"(?:time-slicing-(?P<slices>[1-9][0-9]{0,3})(?P<any>-any)?|mps-(?P<clients>[1-9][0-9]{0,3}))")


def entry_replicas(entry: str) -> int | None:
    """How often an entry advertises each physical GPU; ``None`` for a name that this package does not write."""
    if entry == EXCLUSIVE:
        return 1
    match = _SHARED.fullmatch(entry)
    if match is None:
        return None
    replicas = int(match["slices"] or match["clients"])
    # The plugin refuses 1 on the node, so no version of this package has ever written it.
    return replicas if replicas >= 2 else None


def is_mps(entry: str) -> bool:
    return entry.startswith("mps-")


def entry_config(entry: str) -> dict[str, Any]:
    """The plugin's config behind a name.

    ``replicas`` must be at least 2 (the plugin refuses 1 on the node), so exclusive use has no ``sharing`` at all.
    Under MPS the plugin sets ``failRequestsGreaterThanOne`` itself (release 0.15.0), so it cannot be configured.
    Source: NVIDIA/k8s-device-plugin v0.20.0 api/config/v1.

    :raises ValueError: for a name that this package does not write.
    """
    replicas = entry_replicas(entry)
    if replicas is None:
        raise ValueError(f"{entry!r} is not a config entry of this package")
    config: dict[str, Any] = {"version": "v1", "flags": {"migStrategy": "none", "failOnInitError": True}}
    if entry == EXCLUSIVE:
        return config
    resources = [{"name": GPU_RESOURCE, "replicas": replicas}]
    if is_mps(entry):
        return {**config, "sharing": {"mps": {"renameByDefault": False, "resources": resources}}}
    slicing = {
        "renameByDefault": False,
        "failRequestsGreaterThanOne": not entry.endswith("-any"),
        "resources": resources,
    }
    return {**config, "sharing": {"timeSlicing": slicing}}


def entry_text(entry: str) -> str:
    """The config as text, for the chart's ``config.map``; equal names give equal texts."""
    return yaml.safe_dump(entry_config(entry), sort_keys=False, default_flow_style=False)


def entries_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """``config.map`` of a release's values; empty if there is none."""
    config = values.get("config")
    found = config.get("map") if isinstance(config, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}
