"""Rules of capacity reservations: the fields that need each other, in the pools and in the node class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.spec.problems import Problem

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec


def reserved_needs_reservations(spec: ClusterSpec) -> Iterator[Problem]:
    """An EC2NodeClass finds reservations by ``capacityReservationSelectorTerms`` alone, open ones too
    (karpenter.sh, 'Utilizing ODCRs and Capacity Blocks')."""
    for index, pool in enumerate(spec.node_pools):
        if pool.manage and "reserved" in pool.capacity_types and not spec.reservations(pool):
            yield Problem(
                f"nodePools[{index}].capacityTypes",
                f"the EC2NodeClass of pool {pool.name} selects no capacity reservation, so 'reserved' has no effect",
                "name reservations in capacityReservations, of the pool or of nodeClass; or remove 'reserved'",
            )


def reservations_need_reserved(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        if pool.capacity_reservations and not pool.manage:
            yield Problem(
                f"nodePools[{index}].capacityReservations",
                f"the EC2NodeClass of pool {pool.name} belongs to others (manage: false), who choose its reservations",
                "remove it",
            )
        elif pool.capacity_reservations and "reserved" not in pool.capacity_types:
            yield Problem(
                f"nodePools[{index}].capacityReservations",
                f"pool {pool.name} may not launch into them: its capacityTypes are {', '.join(pool.capacity_types)}",
                "add 'reserved' to capacityTypes",
            )
    if spec.node_class.capacity_reservations and not any(
        pool.manage and "reserved" in pool.capacity_types for pool in spec.node_pools
    ):
        yield Problem(
            "nodeClass.capacityReservations",
            "no pool may launch into them: none has the capacity type 'reserved'",
            "add 'reserved' to the capacityTypes of a pool",
        )


def block_is_reserved_alone(spec: ClusterSpec) -> Iterator[Problem]:
    """The NodePool of a block asks for the label ``capacity-reservation-type``, which other capacity lacks."""
    for index, pool in enumerate(spec.node_pools):
        if pool.capacity_block is None:
            continue
        if not pool.manage:
            yield Problem(
                f"nodePools[{index}].capacityBlock",
                f"pool {pool.name} belongs to others (manage: false), who end it",
                "remove it",
            )
        elif pool.capacity_types != ("reserved",):
            yield Problem(
                f"nodePools[{index}].capacityBlock",
                f"the nodes of pool {pool.name} end with a Capacity Block, and its capacityTypes are "
                f"{', '.join(pool.capacity_types)}",
                "write capacityTypes: [reserved], and another pool for other capacity",
            )


def gate_of_reservations_is_on(spec: ClusterSpec) -> Iterator[Problem]:
    """Feature gate ``ReservedCapacity``: beta and on by default since v1.6 (karpenter.sh, 'Settings'). Without it
    Karpenter makes no offering of the type 'reserved' (aws/karpenter-provider-aws v1.14.1
    pkg/providers/instancetype/offering/reserved_capacity_resolver.go)."""
    reserved = any(pool.manage and "reserved" in pool.capacity_types for pool in spec.node_pools)
    if not (spec.karpenter.manage and reserved):
        return
    gates = spec.karpenter.settings.get("featureGates")
    if isinstance(gates, dict) and gates.get("reservedCapacity", True) is not True:
        yield Problem(
            "karpenter.settings.featureGates.reservedCapacity",
            "turns off what capacity of the type 'reserved' needs",
            "remove it, or remove 'reserved' from the pools' capacityTypes",
        )


RESERVED = (
    reserved_needs_reservations,
    reservations_need_reserved,
    block_is_reserved_alone,
    gate_of_reservations_is_on,
)
