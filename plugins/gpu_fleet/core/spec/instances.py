"""What rules about a cluster file need to know of EC2 instance types: GPUs, vCPUs, places for pods, architecture.

Only for checking files before anything runs: the figures are those of a dated file (:mod:`gpu_fleet.core.catalogue`).
What a node *must* show is never taken from here but from EC2 itself (``DescribeInstanceTypes`` GpuInfo), so that no
gate compares our own numbers with our own numbers.
"""

from __future__ import annotations

import re

from gpu_fleet.core.catalogue import find, whole_gpu_types

#: Families whose GPUs the NVIDIA device plugin does not serve, with what they are.
OTHER_ACCELERATORS: dict[str, str] = {
    "g4ad": "AMD Radeon",
    "inf1": "AWS Inferentia",
    "inf2": "AWS Inferentia2",
    "trn1": "AWS Trainium",
    "trn1n": "AWS Trainium",
    "trn2": "AWS Trainium2",
    "dl1": "Intel Gaudi",
    "p2": "NVIDIA K80, which current drivers no longer support",
}

#: Families of which a node has a part of a GPU: EC2 reports ``Count`` 0 for it, and so does Karpenter, which then takes
#: no node for one that could serve ``nvidia.com/gpu`` (aws/karpenter-provider-aws v1.14.1
#: pkg/providers/instancetype/types.go, ``nvidiaGPUs``). For types of them that the catalogue does not have.
FRACTIONAL_FAMILIES = frozenset({"g6f", "gr6f"})

#: Families with Arm processors (AWS Graviton, NVIDIA Grace) among those with NVIDIA GPUs, likewise.
ARM_FAMILIES = frozenset({"g5g", "p6e-gb200", "p6e-gb300"})

#: Pods that every GPU node has of its own: aws-node, kube-proxy and the device plugin.
PODS_OF_A_NODE = 3

_SIZE = re.compile(r"(?P<times>[0-9]*)xlarge")
_SMALL = {"medium": 1, "large": 2}


def vcpus(instance_type: str) -> int | None:
    """Default vCPUs of an instance type: of the catalogue, otherwise by its size: 2 are ``large``, 4 are ``xlarge``,
    4 × N are ``Nxlarge``.

    ``None`` for unknown types of sizes that say nothing, such as ``metal``. EC2 is asked where the figure is written
    into the cluster.
    """
    known = find(instance_type)
    if known is not None:
        return known.vcpus
    size = instance_type.rpartition(".")[2]
    match = _SIZE.fullmatch(size)
    return 4 * int(match["times"] or 1) if match else _SMALL.get(size)


def pod_places(instance_type: str) -> int | None:
    """Places for pods on an instance type without prefix delegation, or ``None`` if the catalogue does not know it."""
    known = find(instance_type)
    return None if known is None else known.pod_places


def is_fractional(instance_type: str) -> bool:
    known = find(instance_type)
    return known.fractional if known is not None else instance_type.partition(".")[0] in FRACTIONAL_FAMILIES


def architecture(instance_type: str) -> str:
    """``amd64`` or ``arm64``, as the label ``kubernetes.io/arch`` has it."""
    known = find(instance_type)
    if known is not None:
        return known.architecture
    return "arm64" if instance_type.partition(".")[0] in ARM_FAMILIES else "amd64"


def physical_gpus(instance_type: str) -> int | None:
    """Physical NVIDIA GPUs of an instance type; ``None`` if the catalogue does not know it, or of a part of one."""
    known = find(instance_type)
    return (known.gpus or None) if known is not None else None


def gpu_types() -> tuple[str, ...]:
    """All instance types with whole NVIDIA GPUs that the catalogue has."""
    return whole_gpu_types()


def has_instance_store(instance_type: str) -> bool | None:
    """Whether an instance type has NVMe disks of its own, or ``None`` if the catalogue does not know it."""
    known = find(instance_type)
    return None if known is None else known.nvme_gb > 0
