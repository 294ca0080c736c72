"""EC2's words: instance types and capacity types."""

from __future__ import annotations

from typing import Annotated, Literal

from gpu_fleet.core.spec.base import Pattern
from gpu_fleet.core.spec.instances import gpu_types
from gpu_fleet.core.spec.problems import shortened


def _instance_type(value: str) -> str:
    family, _, size = value.partition(".")
    if "*" in value or size == "":
        known = [name for name in gpu_types() if name.split(".")[0] == family]
        listed = f"[{', '.join(known)}] or some of them" if known else "for example g5.xlarge"
        return f"{value!r} is not a single instance type; list each: {listed}"
    return f"{shortened(value)} is not an EC2 instance type; write family and size, for example g5.xlarge"


InstanceType = Annotated[str, Pattern(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", _instance_type)]
CapacityType = Literal["spot", "on-demand", "reserved"]
