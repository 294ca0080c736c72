"""Where EC2 says something else of an instance type than the package's dated file. Pure.

EC2's word counts. A difference means that ``validate`` judged a cluster file by other figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.aws.described import Described, described
from gpu_fleet.core.catalogue import CatalogueType, catalogue_date, find


def differences(answers: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence per difference.

    :param answers: the ``InstanceTypes`` of ``DescribeInstanceTypes``.
    """
    found = []
    for said in map(described, answers):
        known = find(said.name)
        if known is not None:
            found += [
                f"{known.name} has {there} {what} by EC2, and {here} by the catalogue of {catalogue_date()}: EC2's "
                "figure is used"
                for what, here, there in _compared(known, said)
                if None not in (here, there) and here != there
            ]
    return found


def _compared(known: CatalogueType, said: Described) -> list[tuple[str, Any, Any]]:
    return [
        ("GPUs", known.gpus, said.gpus if said.gpus or said.fractional else None),
        ("MiB per GPU", known.gpu_memory_mib, said.memory_mib),
        ("vCPUs", known.vcpus, said.vcpus),
        ("MiB of memory", known.memory_mib, said.ram_mib),
        ("as its architecture", known.architecture, said.architecture),
        ("places for pods", known.pod_places, said.pod_places),
        ("GB of instance store", known.nvme_gb, said.nvme_gb),
        ("EFA interfaces", known.efa, said.efa),
        ("MB/s to EBS at all times", known.ebs_baseline_mbps, said.ebs_baseline_mbps),
    ]
