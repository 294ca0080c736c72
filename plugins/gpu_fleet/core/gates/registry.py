"""All gates by name, so that a trigger can carry ``{"gate": name, "args": {...}}`` as JSON and find the same gate again
in the triggerer."""

from __future__ import annotations

from gpu_fleet.core.gates.capacity.burst import BURST
from gpu_fleet.core.gates.capacity.pool import POOL_CAPACITY
from gpu_fleet.core.gates.capacity.pre_pull import IMAGES_PULLED
from gpu_fleet.core.gates.capacity_block import CAPACITY_BLOCKS
from gpu_fleet.core.gates.drain import PODS_GONE
from gpu_fleet.core.gates.eks import CLUSTER_ACTIVE
from gpu_fleet.core.gates.gate import Gate
from gpu_fleet.core.gates.karpenter import KARPENTER_AVAILABLE, KARPENTER_NODES, KARPENTER_SERVES
from gpu_fleet.core.gates.lock import TURN_FREE
from gpu_fleet.core.gates.node_pools import NODE_CLASS_READY, NODE_POOL_READY
from gpu_fleet.core.gates.objects import CRDS_ESTABLISHED, OBJECT_EXISTS, OBJECT_GONE
from gpu_fleet.core.gates.placement import PODS_PLACED
from gpu_fleet.core.gates.plugin_proof import DEVICE_PLUGIN_PROVEN
from gpu_fleet.core.gates.releases import RELEASE_INSTALLED, RELEASE_WORKLOADS
from gpu_fleet.core.gates.teardown import INSTANCES_GONE, NODE_CLAIMS_GONE, NODE_CLASS_GONE, NODES_GONE
from gpu_fleet.core.gates.validation import PROBES_FINISHED

#: Every gate. A new one is added here.
GATES: tuple[Gate, ...] = (
    BURST,
    POOL_CAPACITY,
    CAPACITY_BLOCKS,
    PODS_GONE,
    CLUSTER_ACTIVE,
    NODE_CLASS_READY,
    NODE_POOL_READY,
    KARPENTER_AVAILABLE,
    CRDS_ESTABLISHED,
    KARPENTER_NODES,
    KARPENTER_SERVES,
    TURN_FREE,
    OBJECT_EXISTS,
    OBJECT_GONE,
    DEVICE_PLUGIN_PROVEN,
    RELEASE_WORKLOADS,
    RELEASE_INSTALLED,
    NODE_CLAIMS_GONE,
    NODES_GONE,
    INSTANCES_GONE,
    NODE_CLASS_GONE,
    PROBES_FINISHED,
    PODS_PLACED,
    IMAGES_PULLED,
)


def by_name(gates: tuple[Gate, ...]) -> dict[str, Gate]:
    """The gates by name.

    :raises ValueError: if two of them have one name.
    """
    table: dict[str, Gate] = {}
    for gate in gates:
        if gate.name in table:
            raise ValueError(f"two gates are named {gate.name!r}")
        table[gate.name] = gate
    return table


_TABLE = by_name(GATES)


def gate_named(name: str) -> Gate:
    """The gate of that name.

    :raises KeyError: with the known names, if there is none.
    """
    try:
        return _TABLE[name]
    except KeyError:
        raise KeyError(f"no gate {name!r}; known: {', '.join(sorted(_TABLE))}") from None


def all_gates() -> tuple[Gate, ...]:
    """Every gate in the order of its name, for tests that hold for all of them."""
    return tuple(_TABLE[name] for name in sorted(_TABLE))
