"""What a survey of other device plugins looks at, and what it finds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.kubernetes.objects import Object

#: Reasons of a refusal.
FOREIGN_PLUGIN, SECOND_PLUGIN, NO_PLUGIN = "ForeignDevicePlugin", "SecondDevicePlugin", "NoDevicePlugin"
POOL_WITHOUT_LABEL, UNKNOWN = "PoolWithoutLabel", "NeighboursUnknown"

ONE_SOCKET = (
    "two device plugins on one node share one socket, and the one that started last wins, so allocatable GPUs would be "
    "right or wrong by chance"
)


@dataclass(frozen=True)
class Seen:
    """What was looked up in the cluster.

    :ivar operator: objects of ``OPERATOR_KINDS``, see ``core/device_plugin/keep_off.py``.
    :ivar auto_mode: ``computeConfig.enabled`` of the EKS cluster.
    :ivar node_pools: the NodePools that others manage, by name; those that do not exist are missing.
    :ivar nodes: of the spec's pools.
    :ivar config_maps: ``namespace/name`` -> the ConfigMap of a device plugin; ``None`` if it does not exist.
    :ivar unknown: what could not be looked up, with the server's message.
    """

    daemon_sets: Sequence[Object] = ()
    operator: Sequence[Object] = ()
    auto_mode: bool = False
    node_pools: Mapping[str, Object] = field(default_factory=dict)
    nodes: Sequence[Object] = ()
    config_maps: Mapping[str, Object | None] = field(default_factory=dict)
    unknown: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Neighbour:
    """A component of another owner that serves, or may serve, GPUs.

    :ivar pools: those of our pools whose nodes it reaches.
    :ivar perhaps: of these, the pools for which this depends on labels that are not known: pool -> labels.
    :ivar counts: whether it is a conflict if it reaches a pool that our plugin serves; else it is only reported.
    :ivar serves: whether it offers ``nvidia.com/gpu``.
    :ivar why: what happens if it and our plugin are on one node.
    :ivar remedy: how its owner keeps it off our nodes.
    """

    object: str
    what: str
    pools: tuple[str, ...] = ()
    perhaps: Mapping[str, frozenset[str]] = field(default_factory=dict)
    counts: bool = True
    serves: bool = True
    why: str = ONE_SOCKET
    remedy: str = ""

    @property
    def conflicts(self) -> bool:
        return self.counts and bool(self.pools)

    def __str__(self) -> str:
        if not self.pools:
            return f"{self.object} ({self.what}) reaches none of our pools"
        reach = [
            f"{pool} (depending on {', '.join(sorted(self.perhaps[pool]))})" if pool in self.perhaps else pool
            for pool in self.pools
        ]
        return f"{self.object} ({self.what}) reaches nodes of pool {', '.join(reach)}"

    def to_json(self) -> dict[str, Any]:
        return {"object": self.object, "what": self.what, "pools": list(self.pools), "conflicts": self.conflicts}


@dataclass(frozen=True)
class Conflict:
    """Why the spec cannot be applied to this cluster.

    :ivar object: the object in question, for a list of differences.
    """

    reason: str
    object: str
    message: str


@dataclass(frozen=True)
class Survey:
    """The result: without conflicts exactly one plugin serves each of our pools, as far as can be known."""

    neighbours: tuple[Neighbour, ...]
    conflicts: tuple[Conflict, ...]
