"""The EBS volumes of the instances of a teardown: which are deleted with them, which are kept, and what they cost.

Terminating an instance deletes the volumes attached with ``DeleteOnTermination``: those of its EC2NodeClass. The EBS
CSI driver attaches PersistentVolumes without it: they are kept, whatever their reclaim policy, because a teardown
deletes no PersistentVolumeClaim (Amazon EC2 User Guide, 'Preserve data when an instance is terminated').
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.aws.costs import HOURS_PER_MONTH, Price, PriceList

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Volume:
    """An attached volume.

    :ivar goes: whether it is deleted with its instance.
    :ivar volume_of: its PersistentVolume and claim, in words.
    """

    id: str
    type: str
    gib: int
    instance: str
    goes: bool
    price: Price
    volume_of: str = ""

    @property
    def per_month(self) -> str:
        """Its price in words."""
        return "unknown price" if self.price.usd is None else f"{self.price.usd * HOURS_PER_MONTH:.2f} USD a month"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": self.type,
            "gib": self.gib,
            "instance": self.instance,
            "goes": self.goes,
            "volumeOf": self.volume_of,
            "usdPerHour": self.price.usd,
        }


def volumes_of(
    instances: Iterable[Json], volumes: Iterable[Json], persistent_volumes: Iterable[Json], prices: PriceList
) -> list[Volume]:
    """The volumes attached to these instances, by id.

    :param instances: of ``DescribeInstances``, whose block devices say what is deleted with them.
    :param volumes: of ``DescribeVolumes``, for type and size.
    """
    names = _names(persistent_volumes)
    goes = {
        (str(instance["InstanceId"]), str(device["Ebs"].get("VolumeId"))): bool(
            device["Ebs"].get("DeleteOnTermination")
        )
        for instance in instances
        for device in instance.get("BlockDeviceMappings") or []
        if device.get("Ebs")
    }
    found = []
    for volume in volumes:
        for attachment in volume.get("Attachments") or []:
            kind, gib, name = str(volume.get("VolumeType")), int(volume.get("Size") or 0), str(volume["VolumeId"])
            here = str(attachment.get("InstanceId")), name
            if here not in goes:
                continue
            found.append(
                Volume(
                    id=name,
                    type=kind,
                    gib=gib,
                    instance=here[0],
                    goes=goes[here],
                    price=prices.volume(kind, float(gib)),
                    volume_of=names.get(name, ""),
                )
            )
            break
    return sorted(found, key=lambda volume: volume.id)


def _names(persistent_volumes: Iterable[Json]) -> dict[str, str]:
    """Volume id -> the PersistentVolume in words (``spec.csi.volumeHandle`` of the driver ebs.csi.aws.com)."""
    found = {}
    for item in persistent_volumes:
        spec = item.get("spec") or {}
        csi = spec.get("csi") or {}
        if str(csi.get("driver", "")).endswith("ebs.csi.aws.com") or csi.get("driver") == "ebs.csi.eks.amazonaws.com":
            claim = spec.get("claimRef") or {}
            of = f" of {claim['namespace']}/{claim['name']}" if claim.get("name") else ""
            policy = spec.get("persistentVolumeReclaimPolicy", "Delete")
            found[str(csi.get("volumeHandle"))] = f"PersistentVolume {item['metadata']['name']}{of}, {policy}"
    return found
