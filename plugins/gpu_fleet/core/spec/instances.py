"""What rules about a cluster file need to know of EC2 instance types: GPUs, vCPUs, places for pods.

Only for checking files before anything runs. What a node *must* show is never taken from here but from EC2 itself
(``DescribeInstanceTypes`` GpuInfo), so that no gate compares our own numbers with our own numbers.
Source: Amazon EC2 instance types, 'Specifications for accelerated computing instances', read 2026-08.
"""

from __future__ import annotations

import re

_ONE = ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")
_GRAPHICS = {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}

GPUS_OF_INSTANCE_TYPE: dict[str, int] = {
    **{f"{family}.{size}": 1 for family in ("g4dn", "g5", "g6", "g6e") for size in _ONE},
    **{f"{family}.{size}": count for family in ("g5", "g6", "g6e") for size, count in _GRAPHICS.items()},
    "g4dn.12xlarge": 4,
    "g4dn.metal": 8,
    "gr6.4xlarge": 1,
    "gr6.8xlarge": 1,
    "p3.2xlarge": 1,
    "p3.8xlarge": 4,
    "p3.16xlarge": 8,
    "p3dn.24xlarge": 8,
    "p4d.24xlarge": 8,
    "p4de.24xlarge": 8,
    "p5.4xlarge": 1,
    "p5.48xlarge": 8,
    "p5e.48xlarge": 8,
    "p5en.48xlarge": 8,
    "p6-b200.48xlarge": 8,
}

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
#: pkg/providers/instancetype/types.go, ``nvidiaGPUs``).
FRACTIONAL_FAMILIES = frozenset({"g6f", "gr6f"})

#: Places for pods: network interfaces of the default card × (IPv4 addresses of each − 1) + 2, as Karpenter and nodeadm
#: count them without prefix delegation (aws/karpenter-provider-aws v1.14.1 pkg/providers/instancetype/types.go,
#: ``ENILimitedPods``). Source of the figures: Amazon EC2 instance types, 'Network specifications', read 2026-08.
POD_PLACES: dict[str, int] = {
    **{f"{family}.{size}": 58 for family in ("g5", "g6", "g6e") for size in ("xlarge", "2xlarge")},
    **{f"{family}.{size}": 234 for family in ("g5", "g6", "g6e") for size in ("4xlarge", "8xlarge")},
    **{f"g4dn.{size}": 29 for size in ("xlarge", "2xlarge", "4xlarge")},
    **{f"g4dn.{size}": 58 for size in ("8xlarge", "16xlarge")},
    "g4dn.12xlarge": 234,
    "g4dn.metal": 737,
    "g5.12xlarge": 737,
    "g5.16xlarge": 234,
    "g5.24xlarge": 737,
    "g5.48xlarge": 345,
    "g6.12xlarge": 234,
    "g6.16xlarge": 737,
    "g6.24xlarge": 737,
    "g6.48xlarge": 737,
    "g6e.12xlarge": 292,
    "g6e.16xlarge": 737,
    "g6e.24xlarge": 492,
    "g6e.48xlarge": 492,
    "gr6.4xlarge": 234,
    "gr6.8xlarge": 234,
    "p3dn.24xlarge": 737,
    "p4d.24xlarge": 737,
    "p4de.24xlarge": 737,
    "p5.4xlarge": 118,
    "p5.48xlarge": 100,
    "p5e.48xlarge": 100,
    "p5en.48xlarge": 198,
    "p6-b200.48xlarge": 198,
}
#: Pods that every GPU node has of its own: aws-node, kube-proxy and the device plugin.
PODS_OF_A_NODE = 3

_SIZE = re.compile(r"(?P<times>[0-9]*)xlarge")
_SMALL = {"medium": 1, "large": 2}


def vcpus(instance_type: str) -> int | None:
    """Default vCPUs of an instance type by its size: 2 are ``large``, 4 are ``xlarge``, 4 × N are ``Nxlarge``.

    ``None`` for sizes that say nothing, such as ``metal``. EC2 is asked where the figure is written into the cluster.
    """
    size = instance_type.rpartition(".")[2]
    match = _SIZE.fullmatch(size)
    return 4 * int(match["times"] or 1) if match else _SMALL.get(size)


def pod_places(instance_type: str) -> int | None:
    """Places for pods on an instance type, or ``None`` if the table does not know it."""
    return POD_PLACES.get(instance_type)


def is_fractional(instance_type: str) -> bool:
    return instance_type.partition(".")[0] in FRACTIONAL_FAMILIES


def physical_gpus(instance_type: str) -> int | None:
    """Physical NVIDIA GPUs of an instance type, or ``None`` if the table does not know it."""
    return GPUS_OF_INSTANCE_TYPE.get(instance_type)


#: Families whose types all have NVMe instance store, and those without any (EC2 DescribeInstanceTypes,
#: ``InstanceStorageInfo``, read 2026-08).
_WITH_DISKS = frozenset(
    {"g4dn", "g5", "g6", "g6e", "gr6", "p3dn", "p4d", "p4de", "p5", "p5e", "p5en", "p6-b200", "p6-b300"}
)
_WITHOUT_DISKS = frozenset({"g3", "g3s", "g5g", "p2", "p3"})


def has_instance_store(instance_type: str) -> bool | None:
    """Whether an instance type has NVMe disks of its own, or ``None`` if it is not known."""
    family = instance_type.partition(".")[0]
    return True if family in _WITH_DISKS else False if family in _WITHOUT_DISKS else None
