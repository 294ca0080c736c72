"""Conflicts where the device plugin is managed elsewhere (``devicePlugin.manage: false``): exactly one plugin has to
reach each pool, with a config that matches what the pool promises. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gpu_fleet.core.device_plugin.detect import DaemonSetPlugin, Ours, plugins_of_others
from gpu_fleet.core.device_plugin.findings import NO_PLUGIN, SECOND_PLUGIN, Conflict, Neighbour, Seen
from gpu_fleet.core.device_plugin.keep_off import keep_off
from gpu_fleet.core.device_plugin.sharing import config_problem
from gpu_fleet.core.kubernetes.names import LABEL_PLUGIN_CONFIG, TAINT_UNPROVEN
from gpu_fleet.core.kubernetes.node_matching import Place, tolerated
from gpu_fleet.core.manifests.build import UNPROVEN

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool


def conflicts_of_theirs(
    spec: ClusterSpec, seen: Seen, places: Mapping[str, Sequence[Place]], neighbours: Sequence[Neighbour]
) -> list[Conflict]:
    """Where the number or the config of the device plugins is not what the pools need.

    :param places: pool -> the nodes that its template makes, and those that exist.
    """
    found = []
    for pool in spec.node_pools:
        certain = [item for item in neighbours if pool.name in item.pools and item.counts and item.serves]
        plugins = [
            p for p in plugins_of_others(seen.daemon_sets, Ours.of(spec)) if str(p) in {c.object for c in certain}
        ]
        sure = [p for p in plugins if pool.name not in next(c for c in certain if c.object == str(p)).perhaps]
        if sure and spec.brings_plugin(pool):
            found.append(
                Conflict(
                    SECOND_PLUGIN,
                    str(sure[0]),
                    f"{sure[0]} reaches nodes of pool {pool.name}, whose AMI (Bottlerocket) has a device plugin of its "
                    f"own: the one that started last wins. Keep it off: {keep_off(sure[0])}",
                )
            )
        elif len(sure) > 1:
            names = " and ".join(str(plugin) for plugin in sure)
            found.append(
                Conflict(
                    SECOND_PLUGIN,
                    str(sure[1]),
                    f"{names} both reach nodes of pool {pool.name} and compete for nvidia.com/gpu: the one that "
                    f"started last wins. Keep one of them off, for example: {keep_off(sure[1])}",
                )
            )
        elif not certain and _must_be_served(spec, pool, places):
            found.append(
                Conflict(
                    NO_PLUGIN,
                    f"pool {pool.name}",
                    "devicePlugin.manage is false, and no DaemonSet with a device plugin would run on nodes of pool "
                    f"{pool.name}: they would be paid for and never offer nvidia.com/gpu. Install one that tolerates "
                    "the pool's taints (NVIDIA's chart or static DaemonSet), or set devicePlugin.manage: true",
                )
            )
        found += _config_conflicts(pool, plugins, seen)
        found += _kept_off(spec, pool, sure)
    return found


def _kept_off(spec: ClusterSpec, pool: NodePool, plugins: Iterable[DaemonSetPlugin]) -> list[Conflict]:
    """A plugin that waits for the proof of a node, which waits for the plugin: the taint of a gated pool keeps its pods
    away, and without them there is no GPU to prove.
    """
    if not spec.gated(pool):
        return []
    return [
        Conflict(
            NO_PLUGIN,
            str(plugin),
            f"pool {pool.name} is gated, and {plugin} does not tolerate the startup taint of its new nodes: they would "
            "never offer nvidia.com/gpu, and never be proven. Add to its tolerations {key: "
            f"{TAINT_UNPROVEN}, operator: Exists, effect: NoSchedule}}, or set admission: open",
        )
        for plugin in plugins
        if not tolerated(UNPROVEN, plugin.pod.get("tolerations") or [])
    ]


def _must_be_served(spec: ClusterSpec, pool: NodePool, places: Mapping[str, Sequence[Place]]) -> bool:
    """AL2023 has no built-in device plugin, Bottlerocket's NVIDIA variants have one; of others' pools it is unknown."""
    return pool.manage and bool(places[pool.name]) and not spec.brings_plugin(pool)


def _config_conflicts(pool: NodePool, plugins: Iterable[DaemonSetPlugin], seen: Seen) -> list[Conflict]:
    found = []
    unreadable = {what for what, _ in seen.unknown}
    for plugin in plugins:
        key = f"{plugin.namespace}/{plugin.found.config_map}"
        if f"ConfigMap {key}" in unreadable:
            continue  # Reported as unknown already.
        problem = config_problem(pool, plugin, seen.config_maps.get(key), config_label(pool, seen))
        if problem is not None:
            found.append(Conflict(problem.reason, str(plugin), problem.message))
    return found


def config_label(pool: NodePool, seen: Seen) -> str | None:
    """The label by which a config-manager selects the entry for a pool's nodes."""
    if pool.manage:
        return pool.labels.get(LABEL_PLUGIN_CONFIG, pool.config_entry)
    item = seen.node_pools.get(pool.name) or {}
    template = (item.get("spec") or {}).get("template") or {}
    value = ((template.get("metadata") or {}).get("labels") or {}).get(LABEL_PLUGIN_CONFIG)
    return None if value is None else str(value)
