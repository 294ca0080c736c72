"""A second device plugin on a node: looked for before anything else is blamed for a wrong number of GPUs. Pure.

Neither our release nor the node is to blame for it: no release is rolled back and no node is quarantined because of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpu_fleet.core.device_plugin.detect import DaemonSetPlugin
from gpu_fleet.core.device_plugin.findings import SECOND_PLUGIN
from gpu_fleet.core.device_plugin.keep_off import describe, keep_off
from gpu_fleet.core.kubernetes.node_matching import place_of_node, runs_on
from gpu_fleet.core.kubernetes.objects import Object, finished, name_of, node_of

__all__ = ["SECOND_PLUGIN", "OnNode", "plugins_on", "rivals", "sentence"]


@dataclass(frozen=True)
class OnNode:
    """A plugin of others on a node.

    :ivar pod: its pod there; ``None`` if there is none yet.
    """

    plugin: DaemonSetPlugin
    pod: Object | None = None

    def __str__(self) -> str:
        if self.pod is None:
            return f"{self.plugin} ({describe(self.plugin)})"
        return f"pod {self.plugin.namespace}/{name_of(self.pod)} of {self.plugin} ({describe(self.plugin)})"


def plugins_on(node: Object, plugins: Iterable[DaemonSetPlugin], pods: Iterable[Object]) -> list[OnNode]:
    """The plugins of others on a node: those with a pod there, and those whose DaemonSet wants one there.

    :param plugins: see :func:`gpu_fleet.core.device_plugin.detect.plugins_of_others`.
    :param pods: the pods in their namespaces.
    """
    name, place = name_of(node), place_of_node(node)
    here = [pod for pod in pods if node_of(pod) == name and not finished(pod)]
    found = []
    for plugin in plugins:
        mine = [pod for pod in here if _is_of(pod, plugin)]
        if mine:
            found.append(OnNode(plugin, max(mine, key=_created)))
        elif runs_on(plugin.pod, place).reaches:
            found.append(OnNode(plugin))
    # Sorted by age: the last to arrive is the intruder.
    return sorted(found, key=lambda each: _created(each.pod) if each.pod is not None else "~")


def rivals(found: Sequence[OnNode], *, ours: bool) -> list[OnNode]:
    """The plugins that compete with the one that is to serve the node.

    :param ours: whether that is the package's own; otherwise it is the first of the others.
    """
    return list(found) if ours else list(found[1:])


def sentence(node: str, found: Sequence[OnNode], *, ours: bool) -> str:
    """What is wrong with a node that has rivals, and what to do."""
    fight = rivals(found, ours=ours)
    others = " and ".join(str(each) for each in fight)
    whom = "ours" if ours else str(found[0])
    return (
        f"node {node} has a second device plugin: {others} fights with {whom} over nvidia.com/gpu, and the one that "
        f"started last wins, so the number of GPUs there is right or wrong by chance; {keep_off(fight[0].plugin)}; "
        "then restart the plugin that stays on this node (when either of two goes, the kubelet withdraws the GPUs)"
    )


def _is_of(pod: Object, plugin: DaemonSetPlugin) -> bool:
    metadata = pod.get("metadata") or {}
    owners = metadata.get("ownerReferences") or []
    return str(metadata.get("namespace", "")) == plugin.namespace and any(
        owner.get("kind") == "DaemonSet" and owner.get("name") == plugin.name for owner in owners
    )


def _created(pod: Object) -> str:
    return str((pod.get("metadata") or {}).get("creationTimestamp", ""))
