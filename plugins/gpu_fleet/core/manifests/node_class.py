"""What an EC2NodeClass says, from a pool's node class. Without any of the optional fields it is what the template and
the first fields alone have always made, so that no node drifts with a newer version of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import DISCOVERY_TAG
from gpu_fleet.core.manifests.user_data import user_data
from gpu_fleet.core.spec import ClusterSpec, NodePool
from gpu_fleet.core.spec.node_class import Ami, Family, NodeClass
from gpu_fleet.core.spec.node_class.fast_start import FastStart, fast_start

#: The volume with images: Bottlerocket keeps the operating system on xvda, and images and pods on xvdb
#: (aws/karpenter-provider-aws v1.14.1 pkg/providers/amifamily/{al2023,bottlerocket}.go, EphemeralBlockDevice).
IMAGES_DEVICE: Mapping[Family, str] = {Family.AL2023: "/dev/xvda", Family.BOTTLEROCKET: "/dev/xvdb"}
_OS_DEVICE = "/dev/xvda"


def complete_class(body: dict[str, Any], spec: ClusterSpec, pool: NodePool) -> None:
    """Complete the ``spec`` of the template of an EC2NodeClass."""
    node_class = spec.node_class_of(pool)
    start = fast_start(node_class, pool.instance_types)
    body["role"] = node_class.role
    body["amiSelectorTerms"] = _images(node_class)
    if node_class.ami is not None:
        body["amiFamily"] = node_class.family.value
    for selector, terms in (
        ("subnetSelectorTerms", node_class.subnets),
        ("securityGroupSelectorTerms", node_class.security_groups),
    ):
        tagged = [{"tags": {DISCOVERY_TAG: node_class.discovery_tag}}]
        body[selector] = tagged if terms is None else [term.to_manifest() for term in terms]
    (mapping,) = body["blockDeviceMappings"]
    mapping["deviceName"] = IMAGES_DEVICE[node_class.family]
    mapping["ebs"]["volumeSize"] = f"{node_class.volume_size}Gi"
    mapping["ebs"] |= _volume(mapping["ebs"], start)
    if node_class.volume is not None and node_class.volume.snapshot is not None:
        del mapping["ebs"]["encrypted"]
    if node_class.os_volume_size is not None:
        system = {"volumeType": "gp3", "volumeSize": f"{node_class.os_volume_size}Gi"}
        own = {**system, "encrypted": True, "deleteOnTermination": True}
        body["blockDeviceMappings"] = [{"deviceName": _OS_DEVICE, "ebs": own}, mapping]
    body["tags"] = dict(node_class.tags)
    body |= _options(node_class, start)
    text = user_data(node_class, pool, start)
    if text:
        body["userData"] = text
    body |= node_class.extra or {}


def _images(node_class: NodeClass) -> list[dict[str, Any]]:
    ami = node_class.ami
    if ami is None:
        return [{"alias": node_class.ami_alias}]
    return [{"id": image} for image in ami.ids] or [_by_name(ami)]


def _by_name(ami: Ami) -> dict[str, Any]:
    found: dict[str, Any] = {"name": ami.name, "owner": ami.owner, "tags": dict(ami.tags)}
    return {key: value for key, value in found.items() if value}


def _volume(ebs: Mapping[str, Any], start: FastStart) -> dict[str, Any]:
    volume = start.volume
    if volume is None:
        return {}
    found = {
        "volumeType": volume.type,
        "iops": volume.iops,
        "throughput": volume.throughput,
        "snapshotID": volume.snapshot,
        "volumeInitializationRate": volume.initialization_rate,
        "kmsKeyID": volume.kms_key,
        "encrypted": volume.encrypted and ebs["encrypted"],
    }
    return {key: value for key, value in found.items() if value is not None}


def _options(node_class: NodeClass, start: FastStart) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if start.raid:
        found["instanceStorePolicy"] = "RAID0"
    if node_class.kubelet is not None and (settings := node_class.kubelet.to_manifest()):
        found["kubelet"] = settings
    if node_class.network_interfaces:
        found["networkInterfaces"] = [
            each.model_dump(mode="json", by_alias=True) for each in node_class.network_interfaces
        ]
    if node_class.placement_group is not None:
        found["placementGroupSelector"] = node_class.placement_group.to_manifest()
    if node_class.associate_public_ip_address is not None:
        found["associatePublicIPAddress"] = node_class.associate_public_ip_address
    if node_class.detailed_monitoring is not None:
        found["detailedMonitoring"] = node_class.detailed_monitoring
    if node_class.metadata_options is not None:
        found["metadataOptions"] = node_class.metadata_options.to_manifest()
    return found
