"""What EC2 says of an instance type: one reading of ``DescribeInstanceTypes`` for all that need it. Pure.

What EC2 leaves out is ``None``, never 0 (Amazon EC2 API reference, ``InstanceTypeInfo``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Described:
    """
    :ivar gpus: whole NVIDIA GPUs; 0: none, or a part of one.
    :ivar fractional: it has a part of an NVIDIA GPU.
    :ivar gpu_name: as EC2 writes it, ``A10G``; empty without an NVIDIA GPU.
    :ivar memory_mib: of one GPU.
    :ivar ram_mib: of the instance.
    :ivar architecture: ``amd64`` or ``arm64``.
    :ivar pod_places: places for pods without prefix delegation.
    :ivar nvme_gb: instance store, all disks together; 0: none.
    :ivar efa: EFA interfaces; 0: none.
    :ivar network_mbps: all network cards together, at all times.
    :ivar ebs_baseline_mbps: MB/s to EBS volumes at all times.
    :ivar ebs_maximum_mbps: MB/s to EBS volumes for a while.
    """

    name: str
    gpus: int
    fractional: bool
    gpu_name: str
    memory_mib: int | None
    vcpus: int | None
    ram_mib: int | None
    architecture: str | None
    pod_places: int | None
    nvme_gb: int | None
    efa: int | None
    network_mbps: int | None
    ebs_baseline_mbps: float | None
    ebs_maximum_mbps: float | None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        del found["name"]
        return found


def described(entry: Mapping[str, Any]) -> Described:
    """Of one item of ``InstanceTypes``."""
    gpus = [
        gpu for gpu in _at(entry, "GpuInfo").get("Gpus") or [] if str(gpu.get("Manufacturer", "")).upper() == "NVIDIA"
    ]
    count = sum(int(gpu.get("Count") or 0) for gpu in gpus)
    first = gpus[0] if gpus else {}
    architectures = _at(entry, "ProcessorInfo").get("SupportedArchitectures") or [""]
    ebs = _at(_at(entry, "EbsInfo"), "EbsOptimizedInfo")
    return Described(
        name=str(entry.get("InstanceType", "")),
        gpus=count,
        fractional=bool(gpus) and count == 0,
        gpu_name=str(first.get("Name", "")),
        memory_mib=_whole(_at(first, "MemoryInfo").get("SizeInMiB")),
        vcpus=_whole(_at(entry, "VCpuInfo").get("DefaultVCpus")),
        ram_mib=_whole(_at(entry, "MemoryInfo").get("SizeInMiB")),
        architecture=_ARCHITECTURES.get(str(architectures[-1])),
        pod_places=_places(_at(entry, "NetworkInfo")),
        nvme_gb=_storage(entry),
        efa=_efa(_at(entry, "NetworkInfo")),
        network_mbps=_bandwidth(_at(entry, "NetworkInfo")),
        ebs_baseline_mbps=ebs.get("BaselineThroughputInMBps"),
        ebs_maximum_mbps=ebs.get("MaximumThroughputInMBps"),
    )


def _at(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return value.get(key) or {}


def _whole(value: Any) -> int | None:
    return int(value) if value else None


def _places(network: Mapping[str, Any]) -> int | None:
    """Network interfaces of the default card × (IPv4 addresses of each − 1) + 2, as Karpenter counts them
    (aws/karpenter-provider-aws v1.14.1 pkg/providers/instancetype/types.go, ``ENILimitedPods``)."""
    cards = network.get("NetworkCards") or []
    index = int(network.get("DefaultNetworkCardIndex") or 0)
    card = cards[index] if index < len(cards) else network
    interfaces, addresses = card.get("MaximumNetworkInterfaces"), network.get("Ipv4AddressesPerInterface")
    return int(interfaces) * (int(addresses) - 1) + 2 if interfaces and addresses else None


def _storage(entry: Mapping[str, Any]) -> int | None:
    if entry.get("InstanceStorageSupported") is False:
        return 0
    return _whole(_at(entry, "InstanceStorageInfo").get("TotalSizeInGB"))


def _efa(network: Mapping[str, Any]) -> int | None:
    if network.get("EfaSupported") is False:
        return 0
    return _whole(_at(network, "EfaInfo").get("MaximumEfaInterfaces"))


def _bandwidth(network: Mapping[str, Any]) -> int | None:
    cards = [card.get("BaselineBandwidthInGbps") for card in network.get("NetworkCards") or []]
    return None if not cards or None in cards else round(sum(cards) * 1000)
