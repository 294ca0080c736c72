"""What a pool tries, in order, when EC2 has no capacity: field ``capacity.ladder``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gpu_fleet.core.spec.base import Pattern, SpecModel
from gpu_fleet.core.spec.problems import shortened
from gpu_fleet.core.spec.types.durations import Seconds
from gpu_fleet.core.spec.types.ec2 import CapacityType, InstanceType


def _zone(value: str) -> str:
    return f"{shortened(value)} is not the name of an availability zone; write for example us-west-2a"


#: Availability zones (``us-west-2a``), local zones (``us-west-2-lax-1a``) and Wavelength zones
#: (``us-west-2-wl1-las-wlz-1``).
Zone = Annotated[str, Pattern(r"[a-z]{2}(-[a-z0-9]+)+", _zone)]


class Rung(SpecModel):
    """One thing to try: instance types, capacity types and zones. What is left out is not narrowed."""

    instance_types: tuple[InstanceType, ...] = Field(
        default=(),
        max_length=100,
        description="Some of the pool's instanceTypes; default: all of them.",
    )
    capacity_types: tuple[CapacityType, ...] = Field(
        default=(),
        max_length=10,
        description="Some of the pool's capacityTypes; default: all of them. Of several, Karpenter tries reserved, "
        "then spot, then on-demand.",
    )
    zones: tuple[Zone, ...] = Field(
        default=(),
        max_length=50,
        description="Availability zones, for example us-west-2a; default: all that the EC2NodeClass has subnets in.",
    )
    time_box: Seconds | None = Field(
        default=None,
        alias="for",
        description="How long this is tried before the next rung begins, counted until EC2 has launched the missing "
        "instances, not until their nodes have joined. It ends sooner for a cause that waiting does not cure, or if "
        "Karpenter would not ask EC2 again in time: it leaves what EC2 refused alone for 3 minutes. Only the last rung "
        "may do without: it lasts until deadlines.capacity.",
    )
