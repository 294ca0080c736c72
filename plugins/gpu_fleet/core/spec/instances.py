"""Physical GPUs per EC2 instance type, as far as rules about a cluster file need them.

Only for checking files before anything runs. What a node *must* show is never taken from here but from EC2 itself
(``DescribeInstanceTypes`` GpuInfo), so that no gate compares our own numbers with our own numbers.
Source: Amazon EC2 instance types, 'Specifications for accelerated computing instances', read 2026-08.
"""

from __future__ import annotations

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


def physical_gpus(instance_type: str) -> int | None:
    """Physical NVIDIA GPUs of an instance type, or ``None`` if the table does not know it."""
    return GPUS_OF_INSTANCE_TYPE.get(instance_type)
