"""Instance types as Karpenter's scheduler sees them: labels, room, and offerings with a price."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.aws.client import Aws
from sandbox.aws.shapes import Shape, Shapes
from sandbox.karpenter.cloudprovider.prices import price
from sandbox.karpenter.cloudprovider.reserved import LABELS as RESERVATION_LABELS
from sandbox.karpenter.cloudprovider.reserved import PRICE_SHARE, RESERVED, Reservation
from sandbox.karpenter.requirements import WELL_KNOWN, Requirement, Requirements, requirement
from sandbox.kube.quantities import Resources

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
ZONE = "topology.kubernetes.io/zone"
CAPACITY_TYPE = "karpenter.sh/capacity-type"
GPU_RESOURCE = "nvidia.com/gpu"
#: Karpenter's default ``VM_MEMORY_OVERHEAD_PERCENT``.
MEMORY_OVERHEAD = 0.075
_OF_INSTANCE = "karpenter.k8s.aws/instance-"
_NAME = re.compile(r"^([a-z]+?)(\d+)([a-z0-9-]*)\.(.+)$")


@dataclass(frozen=True)
class Offering:
    """:ivar reservation: of an offering of the type ``reserved``."""

    zone: str
    capacity_type: str
    price: float
    reservation: Reservation | None = None

    def allowed(self, wanted: Requirements) -> bool:
        """Whether the requirements leave it."""
        labels = {ZONE: self.zone, CAPACITY_TYPE: self.capacity_type}
        if self.reservation is not None:
            labels |= self.reservation.labels
        return all(_allows(wanted.get(key), labels.get(key)) for key in (ZONE, CAPACITY_TYPE, *RESERVATION_LABELS))


def _allows(wanted: Requirement | None, value: str | None) -> bool:
    """:param value: ``None``: the offering lacks the label."""
    if wanted is None:
        return True
    return wanted.operator in ("NotIn", "DoesNotExist") if value is None else wanted.allows(value)


@dataclass(frozen=True)
class InstanceType:
    """
    :ivar requirements: its labels; zone and capacity type hold all that it is offered in.
    :ivar overlaid: a NodeOverlay has changed its capacity.
    """

    shape: Shape
    requirements: Requirements
    allocatable: Resources
    capacity: Resources
    offerings: tuple[Offering, ...]
    overlaid: bool = False

    @property
    def name(self) -> str:
        return self.shape.name

    def offered(self, wanted: Requirements) -> list[Offering]:
        """The offerings that the requirements leave, cheapest first."""
        found = [offering for offering in self.offerings if offering.allowed(wanted)]
        return sorted(found, key=lambda offering: (offering.price, offering.zone))


def labels_of(shape: Shape, region: str) -> dict[str, str]:
    """The labels that a node of this type gets (karpenter.sh docs, "Well-Known Labels")."""
    labels = {
        INSTANCE_TYPE: shape.name,
        "kubernetes.io/arch": shape.architecture,
        "kubernetes.io/os": "linux",
        "topology.kubernetes.io/region": region,
        "karpenter.k8s.aws/instance-hypervisor": shape.hypervisor,
        "karpenter.k8s.aws/instance-cpu": str(shape.cpu),
        "karpenter.k8s.aws/instance-memory": str(shape.memory_mib),
    }
    if match := _NAME.match(shape.name):
        labels |= {
            "karpenter.k8s.aws/instance-category": match[1],
            "karpenter.k8s.aws/instance-family": f"{match[1]}{match[2]}{match[3]}",
            "karpenter.k8s.aws/instance-generation": match[2],
            "karpenter.k8s.aws/instance-size": match[4],
        }
    if shape.local_disk_gb:
        labels["karpenter.k8s.aws/instance-local-nvme"] = str(shape.local_disk_gb)
    if shape.gpus:
        labels |= {
            "karpenter.k8s.aws/instance-gpu-name": shape.gpu_name.lower(),
            "karpenter.k8s.aws/instance-gpu-manufacturer": "nvidia",
            "karpenter.k8s.aws/instance-gpu-count": str(shape.gpus),
            "karpenter.k8s.aws/instance-gpu-memory": str(shape.gpu_memory_mib),
        }
    return labels


def instance_type(
    shape: Shape, zones: Iterable[str], region: str, reservations: Iterable[Reservation] = ()
) -> InstanceType:
    """
    :param zones: where EC2 offers it and the node class has a subnet.
    :param reservations: of the node class.
    """
    zones = frozenset(zones)
    capacity_types = [kind for kind in ("on-demand", "spot") if kind in shape.usage_classes]
    offerings = tuple(Offering(zone, kind, price(shape, kind)) for zone in sorted(zones) for kind in capacity_types)
    offerings += tuple(
        Offering(each.zone, RESERVED, price(shape, "on-demand") / PRICE_SHARE, each)
        for each in reservations
        if each.instance_type == shape.name and each.zone in zones
    )
    found = labels_of(shape, region)
    requirements = Requirements().add(
        *(requirement(key, "In", [value]) for key, value in found.items()),
        # Labels that a type lacks are known, too: a pool that wants GPUs must not get a type without them.
        *(
            requirement(key, "DoesNotExist")
            for key in sorted(WELL_KNOWN)
            if key.startswith(_OF_INSTANCE) and key not in found
        ),
        requirement(ZONE, "In", {offering.zone for offering in offerings}),
        requirement(CAPACITY_TYPE, "In", {offering.capacity_type for offering in offerings}),
    )
    # Physical GPUs: Karpenter does not know the device plugin's replicas; see overlays.py.
    gpus = {GPU_RESOURCE: shape.gpus * 1000} if shape.gpus else {}
    return InstanceType(
        shape,
        requirements,
        shape.allocatable(MEMORY_OVERHEAD) | gpus,
        shape.capacity(MEMORY_OVERHEAD) | gpus,
        offerings,
    )


class Catalog:
    """What EC2 offers, per pool."""

    def __init__(self, aws: Aws, region: str) -> None:
        self._aws = aws
        self._region = region
        self._shapes = Shapes(aws)
        self._zones: dict[str, frozenset[str]] = {}

    async def of_pool(
        self, wanted: Requirements, zones: Iterable[str], reservations: Iterable[Reservation] = ()
    ) -> list[InstanceType]:
        """Instance types that a pool's requirements allow, cheapest first.

        :param zones: of the node class's subnets.
        :param reservations: of the node class; none without the feature gate ReservedCapacity.
        """
        reservations = tuple(reservations)
        named = wanted.get(INSTANCE_TYPE)
        if named is not None and not named.complement:
            shapes = await self._shapes.named(named.values)
        else:
            shapes = await self._shapes.all()
        places = await self._offered(shapes)
        found = []
        for shape in shapes.values():
            offered = instance_type(shape, set(zones) & places.get(shape.name, frozenset()), self._region, reservations)
            if offered.offered(wanted) and offered.requirements.compatible(_of_types(wanted)):
                found.append(offered)
        return sorted(found, key=lambda each: (each.offered(wanted)[0].price, each.name))

    async def shape(self, name: str) -> Shape | None:
        return await self._shapes.get(name)

    async def _offered(self, shapes: dict[str, Shape]) -> dict[str, frozenset[str]]:
        """Zones by instance type; requested once per type."""
        missing = sorted(set(shapes) - set(self._zones))
        if missing:
            filters: list[dict[str, Any]] = [{"Name": "instance-type", "Values": missing}] if len(missing) < 100 else []
            found = await self._aws.paginate(
                "ec2",
                "describe_instance_type_offerings",
                "InstanceTypeOfferings[]",
                LocationType="availability-zone",
                Filters=filters,
            )
            zones: dict[str, set[str]] = {name: set() for name in missing}
            for item in found:
                zones.setdefault(item["InstanceType"], set()).add(item["Location"])
            self._zones |= {name: frozenset(places) for name, places in zones.items()}
        return self._zones


def _of_types(wanted: Requirements) -> Requirements:
    """The part of a pool's requirements that is about instances; its own labels are given to any of them."""
    return Requirements({key: item for key, item in wanted.items() if key.startswith(_TYPE_KEYS)})


_TYPE_KEYS = ("node.kubernetes.io/", "kubernetes.io/arch", "kubernetes.io/os", "topology.kubernetes.io/", _OF_INSTANCE)
