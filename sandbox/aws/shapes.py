"""What an instance type offers to Kubernetes, computed from EC2's own description of it (DescribeInstanceTypes)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.aws.client import Aws
from sandbox.kube.quantities import Resources

#: The hypervisor's and the kernel's share of the memory that EC2 names; Karpenter assumes 7.5 %.
KERNEL_MEMORY_SHARE = 0.04
ROOT_VOLUME_BYTES = 20 * 2**30
_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
_MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """
    :ivar cpu: virtual CPUs.
    :ivar memory_mib: as EC2 names it.
    :ivar max_pods: by addresses: interfaces x (addresses - 1) + 2 (awslabs/amazon-eks-ami ``eni-max-pods.txt``).
    :ivar gpus: physical NVIDIA GPUs.
    :ivar gpu_memory_mib: of one of them.
    :ivar ebs_mibps: most that its volumes take together, in MiB/s; 0 if EC2 does not say.
    """

    name: str
    cpu: int
    memory_mib: int
    max_pods: int
    architecture: str
    gpus: int
    gpu_name: str
    gpu_memory_mib: int
    usage_classes: tuple[str, ...]
    hypervisor: str
    local_disk_gb: int
    ebs_mibps: float = 0.0

    def capacity(self, memory_share: float = KERNEL_MEMORY_SHARE) -> Resources:
        """Without devices: those are the device plugin's to announce."""
        return {
            "cpu": self.cpu * 1000,
            "memory": int(self.memory_mib * (1 - memory_share)) * _MIB * 1000,
            "ephemeral-storage": ROOT_VOLUME_BYTES * 1000,
            "pods": self.max_pods * 1000,
        }

    def allocatable(self, memory_share: float = KERNEL_MEMORY_SHARE) -> Resources:
        """Capacity less nodeadm's reserves (amazon-eks-ami ``nodeadm/internal/kubelet``) and the eviction threshold."""
        capacity = self.capacity(memory_share)
        reserved_mib = 255 + 11 * self.max_pods + 100
        return capacity | {
            "cpu": capacity["cpu"] - reserved_cpu(self.cpu),
            "memory": capacity["memory"] - reserved_mib * _MIB * 1000,
            "ephemeral-storage": int(capacity["ephemeral-storage"] * 0.9) - 10**9 * 1000,
        }


def reserved_cpu(cpus: int) -> int:
    """Millicores that nodeadm reserves: 6 % of the first core, 1 % of the next, 0.5 % of two more, 0.25 % beyond."""
    total = 0.0
    for index in range(cpus):
        total += 60 if index == 0 else 10 if index == 1 else 5 if index < 4 else 2.5
    return int(total)


def shape_of(description: dict[str, Any]) -> Shape:
    """From one item of DescribeInstanceTypes."""
    network = description["NetworkInfo"]
    cards = network.get("NetworkCards") or [{}]
    interfaces = cards[0].get("MaximumNetworkInterfaces") or network["MaximumNetworkInterfaces"]
    gpus = [gpu for gpu in (description.get("GpuInfo") or {}).get("Gpus", []) if gpu.get("Manufacturer") == "NVIDIA"]
    architecture = description["ProcessorInfo"]["SupportedArchitectures"][-1]
    return Shape(
        name=description["InstanceType"],
        cpu=description["VCpuInfo"]["DefaultVCpus"],
        memory_mib=description["MemoryInfo"]["SizeInMiB"],
        max_pods=interfaces * (network["Ipv4AddressesPerInterface"] - 1) + 2,
        architecture=_ARCHITECTURES.get(architecture, architecture),
        gpus=sum(gpu.get("Count", 0) for gpu in gpus),
        gpu_name=gpus[0]["Name"] if gpus else "",
        gpu_memory_mib=gpus[0].get("MemoryInfo", {}).get("SizeInMiB", 0) if gpus else 0,
        usage_classes=tuple(description.get("SupportedUsageClasses") or ("on-demand",)),
        hypervisor=description.get("Hypervisor", "nitro"),
        local_disk_gb=(description.get("InstanceStorageInfo") or {}).get("TotalSizeInGB", 0),
        ebs_mibps=_ebs_mibps(description),
    )


def _ebs_mibps(description: dict[str, Any]) -> float:
    """EC2 says it in MB/s (``EbsInfo.EbsOptimizedInfo``), for bursts that last half an hour."""
    info = (description.get("EbsInfo") or {}).get("EbsOptimizedInfo") or {}
    return float(info.get("MaximumThroughputInMBps") or 0.0) * 1e6 / _MIB


class Shapes:
    """Instance types by name, each described once."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._known: dict[str, Shape] = {}
        self._complete = False
        self._lock = asyncio.Lock()

    async def get(self, name: str) -> Shape | None:
        return (await self.named([name])).get(name)

    async def named(self, names: Iterable[str]) -> dict[str, Shape]:
        """Those of the names that EC2 knows."""
        wanted = set(names)
        async with self._lock:
            missing = sorted(wanted - set(self._known))
            if missing and not self._complete:
                await self._load(Filters=[{"Name": "instance-type", "Values": missing}])
        return {name: self._known[name] for name in sorted(wanted) if name in self._known}

    async def all(self) -> dict[str, Shape]:
        async with self._lock:
            if not self._complete:
                await self._load()
                self._complete = True
        return dict(self._known)

    async def _load(self, **params: Any) -> None:
        for item in await self._aws.paginate("ec2", "describe_instance_types", "InstanceTypes[]", **params):
            self._known[item["InstanceType"]] = shape_of(item)
