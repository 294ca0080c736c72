"""How many GPUs a node physically has, according to EC2.

This is one side of 'allocatable == physical × replicas'. It comes only from ``DescribeInstanceTypes``: taken from our
own spec or from node labels, the equation would compare our own numbers with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.aws.described import Described
from gpu_fleet.core.aws.described import described as read
from gpu_fleet.core.errors import SpecError

#: ``DescribeInstanceTypes`` takes at most 100 names a call (EC2 API reference).
MAX_TYPES_PER_CALL = 100


@dataclass(frozen=True)
class Hardware:
    """The GPUs of every node of a pool.

    :ivar count: physical GPUs per node.
    :ivar products: instance type -> GPU name as EC2 writes it, for example ``A10G``.
    :ivar memory_mib: instance type -> memory of one GPU in MiB, where EC2 reports it.
    :ivar vcpus: instance type -> default vCPUs, where EC2 reports it.
    :ivar pod_places: instance type -> places for pods without prefix delegation, where EC2 reports it.
    :ivar types: instance type -> all that EC2 says of it.
    """

    count: int
    products: Mapping[str, str]
    memory_mib: Mapping[str, int]
    vcpus: Mapping[str, int] = field(default_factory=dict)
    pod_places: Mapping[str, int] = field(default_factory=dict)
    types: Mapping[str, Described] = field(default_factory=dict)


def hardware_of(described: Iterable[Mapping[str, Any]], wanted: Sequence[str]) -> Hardware:
    """The GPUs that all wanted instance types have.

    :param described: the ``InstanceTypes`` of ``DescribeInstanceTypes``.
    :param wanted: the pool's instance types.
    :raises SpecError: a type that EC2 does not know, that has no NVIDIA GPU or a part of one, or whose count differs
        from the others'.
    """
    by_name = {found.name: found for found in map(read, described)}
    counts: dict[str, int] = {}
    products: dict[str, str] = {}
    memory: dict[str, int] = {}
    for name in wanted:
        found = by_name.get(name)
        if found is None:
            raise SpecError(
                f"EC2 does not know instance type {name} in this region",
                field="nodePools[].instanceTypes",
                remedy="correct it, or choose a type that the region offers",
            )
        counts[name] = found.gpus
        if found.fractional:
            raise SpecError(
                f"instance type {name} has a part of a GPU: EC2 reports 0 for it, so nodes of it would count as nodes "
                "without GPUs, for Karpenter as for this package",
                field="nodePools[].instanceTypes",
                remedy="name types with whole GPUs, for example g6.xlarge with sharing",
            )
        if found.gpus < 1:
            raise SpecError(
                f"instance type {name} has no NVIDIA GPU",
                field="nodePools[].instanceTypes",
                remedy="name GPU instance types, for example g5.xlarge",
            )
        products[name] = found.gpu_name
        if found.memory_mib:
            memory[name] = found.memory_mib
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items()) or "none is named"
        raise SpecError(
            f"the instance types of one pool must have the same number of GPUs: {listed}",
            field="nodePools[].instanceTypes",
            remedy="make one pool per number of GPUs",
        )
    types = {name: by_name[name] for name in wanted}
    return Hardware(
        next(iter(counts.values())),
        products,
        memory,
        vcpus={name: found.vcpus for name, found in types.items() if found.vcpus},
        pod_places={name: found.pod_places for name, found in types.items() if found.pod_places is not None},
        types=types,
    )
