"""What an instance was launched with, as its operating system sees it at boot: user data, disks, AMI.

- nodeadm: NodeConfigs of a MIME archive are merged in their order (awslabs/amazon-eks-ami v20260714
  ``nodeadm/internal/api/merge.go``); ``FastImagePull`` is ignored below 4 vCPUs or 7 GiB
  (``nodeadm/internal/containerd/config.go``, UseSOCISnapshotter).
- Bottlerocket: settings in TOML. Its device plugin's defaults are in bottlerocket-os/bottlerocket-core-kit
  ``packages/nvidia-k8s-device-plugin/nvidia-k8s-device-plugin-conf``: with time-slicing 2 replicas, renamed, and one
  share per container. SOCI: bottlerocket.dev/en/os/1.53.x/api/settings/container-runtime-plugins.
"""

from __future__ import annotations

import base64
import binascii
import email
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from typing import Any

import yaml

from sandbox.aws.client import Aws
from sandbox.aws.shapes import Shape
from sandbox.nodes.gpus.plugin_config import GPU_RESOURCE, Sharing, Strategy
from sandbox.nodes.runtime.images import Disk

Object = dict[str, Any]

#: MiB/s of a volume that says nothing of its throughput: gp3's own (Amazon EBS User Guide, 'General Purpose SSD').
GP3_MIBPS = 125.0
#: MiB/s of a RAID0 of NVMe disks; guess.
NVME_MIBPS = 1000.0
#: nodeadm ignores the gate FastImagePull below these.
_LEAST_CPUS, _LEAST_MEMORY_MIB = 4, 7 * 1024
_DATA_VOLUMES = ("/dev/xvda", "/dev/xvdb")


@dataclass(frozen=True)
class Boot:
    """
    :ivar sharing: of the device plugin that is part of the AMI; ``None``: the AMI has none.
    :ivar raid: images and containers are on the instance's own disks.
    :ivar os_image: as the Node shows it; empty: AL2023.
    """

    disk: Disk = field(default_factory=lambda: Disk(GP3_MIBPS))
    sharing: Sharing | None = None
    raid: bool = False
    os_image: str = ""


async def boot_of(aws: Aws, instance: Object, shape: Shape) -> Boot:
    """How an instance boots."""
    identity = instance["InstanceId"]
    reply = await aws.call("ec2", "describe_instance_attribute", InstanceId=identity, Attribute="userData")
    text = decoded((reply.get("UserData") or {}).get("Value") or "")
    found = await aws.call("ec2", "describe_images", ImageIds=[instance["ImageId"]])
    name = str(found["Images"][0].get("Name", "")) if found["Images"] else ""
    wanted = [{"Name": "attachment.instance-id", "Values": [identity]}]
    volumes = await aws.paginate("ec2", "describe_volumes", "Volumes[]", Filters=wanted)
    ebs = min(_throughput(volumes), shape.ebs_mibps or NVME_MIBPS)
    if name.startswith("bottlerocket-"):
        variant, _, release = name.removeprefix("bottlerocket-").partition("-x86_64-v")
        shown = f"Bottlerocket OS {release.partition('-')[0]} ({variant})"
        boot = of_settings(settings_of(text), shape, ebs, nvidia=variant.endswith("-nvidia"))
        return replace(boot, os_image=shown)
    return of_node_config(node_config_of(text), shape, ebs)


def decoded(text: str) -> str:
    """EC2 shows user data in base64, and a launch may have encoded it once more."""
    for _ in range(2):
        try:
            text = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, ValueError):
            break
    return text


def node_config_of(text: str) -> Object:
    """The ``spec`` of all NodeConfigs in AL2023's user data, merged; empty if there is none."""
    merged: Object = {}
    for part in _parts(text):
        try:
            document = yaml.safe_load(part)
        except yaml.YAMLError:
            continue  # a script
        if isinstance(document, dict) and document.get("kind") == "NodeConfig":
            merged = _over(merged, document.get("spec") or {})
    return merged


def _parts(text: str) -> list[str]:
    if not text.lstrip().startswith(("MIME-Version:", "Content-Type:")):
        return [text]
    payload = email.message_from_string(text).get_payload()
    found = [part for part in payload if isinstance(part, Message)] if isinstance(payload, list) else []
    return [str(part.get_payload()) for part in found if part.get_content_type() == "application/node.eks.aws"]


def _over(base: Mapping[str, Any], more: Mapping[str, Any]) -> Object:
    merged = dict(base)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def of_node_config(spec: Object, shape: Shape, ebs_mibps: float) -> Boot:
    strategy = ((spec.get("instance") or {}).get("localStorage") or {}).get("strategy")
    raid = strategy == "RAID0" and bool(shape.local_disk_gb)
    large = shape.cpu >= _LEAST_CPUS and shape.memory_mib >= _LEAST_MEMORY_MIB
    parallel = bool((spec.get("featureGates") or {}).get("FastImagePull")) and large
    return Boot(Disk(NVME_MIBPS if raid else ebs_mibps, parallel), None, raid)


def settings_of(text: str) -> Object:
    """Bottlerocket's settings; a broken document leaves the defaults (early-boot-config would not let it boot)."""
    try:
        return dict(tomllib.loads(text).get("settings") or {})
    except tomllib.TOMLDecodeError:
        return {}


def of_settings(settings: Object, shape: Shape, ebs_mibps: float, *, nvidia: bool) -> Boot:
    commands = json.dumps(settings.get("bootstrap-commands") or {})
    raid = "ephemeral-storage" in commands and bool(shape.local_disk_gb)
    parallel = (settings.get("container-runtime") or {}).get("snapshotter") == "soci"
    sharing = _sharing((settings.get("kubelet-device-plugins") or {}).get("nvidia") or {}) if nvidia else None
    return Boot(Disk(NVME_MIBPS if raid else ebs_mibps, parallel), sharing, raid)


def _sharing(plugin: Object) -> Sharing:
    if plugin.get("device-sharing-strategy") != "time-slicing":
        return Sharing()
    slicing = plugin.get("time-slicing") or {}
    renamed = slicing.get("rename-by-default", True)
    return Sharing(
        Strategy.TIME_SLICING,
        int(slicing.get("replicas", 2)),
        f"{GPU_RESOURCE}.shared" if renamed else GPU_RESOURCE,
        bool(slicing.get("fail-requests-greater-than-one", True)),
    )


def _throughput(volumes: list[Object]) -> float:
    """Of the volume with images: Bottlerocket's xvdb, else the root volume."""
    by_device = {
        attachment["Device"]: float(volume.get("Throughput") or GP3_MIBPS)
        for volume in volumes
        for attachment in volume.get("Attachments") or []
    }
    known = [by_device[device] for device in _DATA_VOLUMES if device in by_device]
    return known[-1] if known else GP3_MIBPS
