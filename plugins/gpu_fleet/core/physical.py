"""How many GPUs a node physically has, according to EC2.

This is one side of 'allocatable == physical × replicas'. It comes from ``DescribeInstanceTypes`` and from nowhere else:
taken from our own spec or from node labels the equation would compare our numbers with our numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.errors import SpecError

#: ``DescribeInstanceTypes`` takes at most 100 names a call (EC2 API reference).
MAX_TYPES_PER_CALL = 100


@dataclass(frozen=True)
class Hardware:
    """The GPUs of every node of a pool.

    :ivar count: physical GPUs per node.
    :ivar products: instance type -> GPU name as EC2 writes it, for example ``A10G``.
    :ivar memory_mib: instance type -> memory of one GPU in MiB, where EC2 tells.
    """

    count: int
    products: Mapping[str, str]
    memory_mib: Mapping[str, int]


def hardware_of(described: Iterable[Mapping[str, Any]], wanted: Sequence[str]) -> Hardware:
    """The GPUs that all wanted instance types have.

    :param described: the ``InstanceTypes`` of ``DescribeInstanceTypes``.
    :param wanted: the pool's instance types.
    :raises SpecError: a type that EC2 does not know, that has no NVIDIA GPU, or whose count differs from the others'.
    """
    by_name = {str(entry.get("InstanceType")): entry for entry in described}
    counts: dict[str, int] = {}
    products: dict[str, str] = {}
    memory: dict[str, int] = {}
    for name in wanted:
        if name not in by_name:
            raise SpecError(
                f"EC2 does not know instance type {name} in this region",
                field="nodePools[].instanceTypes",
                remedy="correct it, or choose a type that the region offers",
            )
        gpus = [
            gpu
            for gpu in (by_name[name].get("GpuInfo") or {}).get("Gpus") or []
            if str(gpu.get("Manufacturer", "")).upper() == "NVIDIA"
        ]
        counts[name] = sum(int(gpu.get("Count") or 0) for gpu in gpus)
        if counts[name] < 1:
            raise SpecError(
                f"instance type {name} has no NVIDIA GPU",
                field="nodePools[].instanceTypes",
                remedy="name GPU instance types, for example g5.xlarge",
            )
        products[name] = str(gpus[0].get("Name", ""))
        size = (gpus[0].get("MemoryInfo") or {}).get("SizeInMiB")
        if size:
            memory[name] = int(size)
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items()) or "none is named"
        raise SpecError(
            f"the instance types of one pool must have the same number of GPUs: {listed}",
            field="nodePools[].instanceTypes",
            remedy="make one pool per number of GPUs",
        )
    return Hardware(next(iter(counts.values())), products, memory)
