"""Notes on which nodes the device plugin serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.kubernetes.names import LABEL_DEVICE_PLUGIN, SERVED
from gpu_fleet.core.spec.problems import Note

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec


def nodes_of_others_need_our_label(spec: ClusterSpec) -> Iterator[Note]:
    """Our device plugin runs only on nodes with our label, which NodePools of others do not set by themselves."""
    for index, pool in enumerate(spec.node_pools):
        if spec.device_plugin.manage and not pool.manage:
            yield Note(
                f"nodePools[{index}].manage",
                f"our device plugin serves the nodes of pool {pool.name} only if their owner labels them "
                f"{LABEL_DEVICE_PLUGIN}={SERVED}",
            )
