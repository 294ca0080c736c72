"""Instance types: GPUs, vCPUs, memory, network and disks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("instance_types.json")


@dataclass(frozen=True, slots=True)
class CatalogueType:
    """What the file knows of an instance type; ``None`` where its sources do not say.

    :ivar gpus: whole NVIDIA GPUs; 0: a part of one.
    :ivar gpu: name of the GPU, as the label ``karpenter.k8s.aws/instance-gpu-name`` has it.
    :ivar gpu_memory_mib: of one GPU, or of the part.
    :ivar architecture: ``amd64`` or ``arm64``.
    :ivar pod_places: places for pods without prefix delegation: interfaces of the default card × (IPv4 addresses of
        each − 1) + 2.
    :ivar nvme_gb: instance store, all disks together; 0: none.
    :ivar efa: EFA interfaces; 0: none.
    :ivar network_mbps: all network cards together.
    :ivar ebs_baseline_mbps: MB/s to EBS volumes at all times (``BaselineThroughputInMBps``).
    :ivar ebs_maximum_mbps: MB/s to EBS volumes for at most 30 minutes a day, if it is above the baseline.
    """

    name: str
    gpus: int
    gpu: str
    gpu_memory_mib: int
    vcpus: int
    memory_mib: int
    architecture: str
    pod_places: int | None
    nvme_gb: int
    efa: int | None
    network_mbps: int | None
    ebs_baseline_mbps: float | None
    ebs_maximum_mbps: float | None

    @property
    def fractional(self) -> bool:
        """EC2 reports a ``Count`` of 0 for a part of a GPU."""
        return self.gpus == 0

    @property
    def arm(self) -> bool:
        return self.architecture == "arm64"

    def __str__(self) -> str:
        gpus = f"a part of a {self.gpu.upper()}" if self.fractional else f"{self.gpus} x {self.gpu.upper()}"
        return (
            f"{self.name}: {gpus} with {self.gpu_memory_mib} MiB, {self.vcpus} vCPUs, "
            f"{self.memory_mib // 1024} GiB, {self.architecture}"
        )


@cache
def _document() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


@cache
def find(instance_type: str) -> CatalogueType | None:
    """What the file knows of a type; ``None``: nothing."""
    entry = _document()["types"].get(instance_type)
    if entry is None:
        return None
    return CatalogueType(
        instance_type,
        entry["gpus"],
        entry["gpu"],
        entry["gpuMemoryMiB"],
        entry["vcpus"],
        entry["memoryMiB"],
        entry["architecture"],
        entry["podPlaces"],
        entry["nvmeGB"],
        entry["efa"],
        entry["networkMbps"],
        entry["ebsBaselineMBps"],
        entry["ebsMaximumMBps"],
    )


def catalogue_date() -> str:
    """The day that the figures are of, ISO 8601."""
    return str(_document()["date"])


@cache
def whole_gpu_types() -> tuple[str, ...]:
    """The names of all types with whole GPUs, family by family, the small ones first."""
    return tuple(name for name, entry in _document()["types"].items() if entry["gpus"])
