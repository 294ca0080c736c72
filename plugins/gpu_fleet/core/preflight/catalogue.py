"""Where EC2 says something else of an instance type than the package's dated file. Pure.

EC2's word counts. A difference means that ``validate`` judged a cluster file by other figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.aws.hardware import places_of
from gpu_fleet.core.catalogue import CatalogueType, catalogue_date, find

_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}


def differences(described: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence per difference.

    :param described: the ``InstanceTypes`` of ``DescribeInstanceTypes``.
    """
    found = []
    for entry in described:
        known = find(str(entry.get("InstanceType")))
        if known is not None:
            found += [
                f"{known.name} has {there} {what} by EC2, and {here} by the catalogue of {catalogue_date()}: EC2's "
                "figure is used"
                for what, here, there in _compared(known, entry)
                if None not in (here, there) and here != there
            ]
    return found


def _compared(known: CatalogueType, entry: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    gpus = (entry.get("GpuInfo") or {}).get("Gpus") or []
    architectures = (entry.get("ProcessorInfo") or {}).get("SupportedArchitectures") or []
    return [
        ("GPUs", known.gpus, sum(int(gpu.get("Count") or 0) for gpu in gpus) if gpus else None),
        ("MiB per GPU", known.gpu_memory_mib, (gpus[0].get("MemoryInfo") or {}).get("SizeInMiB") if gpus else None),
        ("vCPUs", known.vcpus, (entry.get("VCpuInfo") or {}).get("DefaultVCpus")),
        ("MiB of memory", known.memory_mib, (entry.get("MemoryInfo") or {}).get("SizeInMiB")),
        ("as its architecture", known.architecture, _ARCHITECTURES.get(architectures[-1]) if architectures else None),
        ("places for pods", known.pod_places, places_of(entry)),
    ]
