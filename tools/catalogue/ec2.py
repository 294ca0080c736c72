"""Instance types as EC2 itself describes them: asked now, or from a recorded answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}


def ask(region: str, profile: str | None) -> list[dict[str, Any]]:
    """All types with GPUs that a region knows, by the default credentials or a profile's."""
    import boto3

    client = boto3.session.Session(profile_name=profile, region_name=region).client("ec2")
    pages = client.get_paginator("describe_instance_types").paginate()
    return [entry for page in pages for entry in page["InstanceTypes"] if entry.get("GpuInfo")]


def recorded(path: Path) -> dict[str, dict[str, Any]]:
    """Type -> its description: of a file like moto's ``ec2/resources/instance_types.json.gz``, which its maintainers
    record with ``DescribeInstanceTypes``, or of the JSON that ``aws ec2 describe-instance-types`` prints.

    :raises ValueError: it is neither.
    """
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found = json.loads(text)
    if isinstance(found, dict) and isinstance(found.get("InstanceTypes"), list):
        found = {entry["InstanceType"]: entry for entry in found["InstanceTypes"]}
    if not isinstance(found, dict):
        raise ValueError(f"{path} has no descriptions of instance types by name")
    return found


def nvidia(entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries of the catalogue for all described types with NVIDIA GPUs."""
    found = {}
    for entry in entries:
        gpus = [gpu for gpu in (entry.get("GpuInfo") or {}).get("Gpus") or [] if gpu.get("Manufacturer") == "NVIDIA"]
        if gpus:
            found[str(entry["InstanceType"])] = _entry(entry, gpus)
    return found


def _entry(entry: Mapping[str, Any], gpus: list[dict[str, Any]]) -> dict[str, Any]:
    network, ebs = entry["NetworkInfo"], (entry.get("EbsInfo") or {}).get("EbsOptimizedInfo") or {}
    cards = network.get("NetworkCards") or [network]
    card = cards[int(network.get("DefaultNetworkCardIndex") or 0)]
    bandwidth = [each.get("BaselineBandwidthInGbps") for each in cards]
    return {
        "gpus": sum(int(gpu.get("Count") or 0) for gpu in gpus),
        # As the node's label has it: aws/karpenter-provider-aws v1.14.1 pkg/providers/instancetype/types.go.
        "gpu": str(gpus[0]["Name"]).lower().replace(" ", "-"),
        "gpuMemoryMiB": gpus[0]["MemoryInfo"]["SizeInMiB"],
        "vcpus": entry["VCpuInfo"]["DefaultVCpus"],
        "memoryMiB": entry["MemoryInfo"]["SizeInMiB"],
        "architecture": _ARCHITECTURES[entry["ProcessorInfo"]["SupportedArchitectures"][-1]],
        "nvmeGB": (entry.get("InstanceStorageInfo") or {}).get("TotalSizeInGB", 0),
        "efa": (network.get("EfaInfo") or {}).get("MaximumEfaInterfaces", 0),
        "networkMbps": None if None in bandwidth else int(sum(bandwidth) * 1000),
        "ebsMaximumMBps": ebs.get("MaximumThroughputInMBps"),
        "ebsBaselineMBps": ebs.get("BaselineThroughputInMBps"),
        "podPlaces": int(card["MaximumNetworkInterfaces"]) * (int(network["Ipv4AddressesPerInterface"]) - 1) + 2,
        "from": "DescribeInstanceTypes",
    }
