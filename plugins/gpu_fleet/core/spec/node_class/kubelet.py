"""The kubelet's configuration, as far as Karpenter needs to know it for its scheduling.

Karpenter takes these fields from ``EC2NodeClass.spec.kubelet`` and counts with them (aws/karpenter-provider-aws v1.14.1
pkg/apis/v1/kubeletconfiguration.go, ``ParsedKubeletConfig``); the bounds are those of
``kubeletconfiguration_validation.go``, which the API server does not know: a mistake would show only as
``ValidationSucceeded=False``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from gpu_fleet.core.spec.base import SpecModel
from gpu_fleet.core.spec.types.durations import Duration

EVICTION_SIGNALS = (
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
)
RESERVABLE = ("cpu", "memory", "ephemeral-storage", "pid")
#: A quantity of Kubernetes (apimachinery pkg/api/resource), not negative.
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", re.ASCII)
_PERCENTAGE = re.compile(r"([0-9]{1,3}(\.[0-9]+)?)%", re.ASCII)

Percent = Annotated[int, Field(ge=0, le=100)]


class Kubelet(SpecModel):
    """Fields of the kubelet's configuration; what is not given here is nodeadm's or Bottlerocket's own choice."""

    max_pods: int | None = Field(
        default=None, ge=1, le=1000, description="Pods of a node. null: as many as its network interfaces allow."
    )
    pods_per_core: int | None = Field(
        default=None, ge=1, le=100, description="Pods per vCPU, within maxPods. AL2023 only: Bottlerocket ignores it."
    )
    system_reserved: dict[str, str] = Field(
        default_factory=dict, description="Kept free for the operating system: cpu, memory, ephemeral-storage, pid."
    )
    kube_reserved: dict[str, str] = Field(
        default_factory=dict, description="Kept free for kubelet and container runtime, in the same form."
    )
    eviction_hard: dict[str, str] = Field(
        default_factory=dict, description="Signal -> quantity or percentage at which pods are evicted at once."
    )
    eviction_soft: dict[str, str] = Field(
        default_factory=dict, description="The same with a period of grace; each signal needs one."
    )
    eviction_soft_grace_period: dict[str, Duration] = Field(
        default_factory=dict, description="Signal of evictionSoft -> how long it may last."
    )
    eviction_max_pod_grace_period: int | None = Field(
        default=None, ge=0, le=86_400, description="Seconds that a pod gets at a soft eviction."
    )
    cluster_dns: tuple[str, ...] = Field(
        default=(), max_length=3, alias="clusterDNS", description="IP addresses of the cluster's DNS."
    )
    image_gc_high_threshold_percent: Percent | None = Field(
        default=None,
        alias="imageGCHighThresholdPercent",
        description="Disk usage at which the kubelet removes images that no container uses.",
    )
    image_gc_low_threshold_percent: Percent | None = Field(
        default=None, alias="imageGCLowThresholdPercent", description="Disk usage at which it stops removing them."
    )
    cpu_cfs_quota: bool | None = Field(
        default=None, alias="cpuCFSQuota", description="Whether CPU limits are enforced by CFS quota."
    )

    @field_validator("system_reserved", "kube_reserved")
    @classmethod
    def _reserved(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if key not in RESERVABLE:
                raise ValueError(f"{key!r} cannot be reserved; one of {', '.join(RESERVABLE)}")
            if not _QUANTITY.fullmatch(text):
                raise ValueError(f"{key}: {text!r} is not a quantity; write for example 500m or 1Gi")
        return value

    @field_validator("eviction_hard", "eviction_soft")
    @classmethod
    def _thresholds(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            _signal(key)
            share = _PERCENTAGE.fullmatch(text)
            if not (_QUANTITY.fullmatch(text) or (share is not None and float(share[1]) <= 100)):
                raise ValueError(f"{key}: {text!r} is no threshold; write a quantity (500Mi) or a percentage (5%)")
        return value

    @field_validator("eviction_soft_grace_period")
    @classmethod
    def _signals(cls, value: dict[str, Duration]) -> dict[str, Duration]:
        for key in value:
            _signal(key)
        return value

    @field_validator("cluster_dns")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            try:
                ipaddress.ip_address(each)
            except ValueError:
                raise ValueError(f"{each!r} is not an IP address; write for example 10.100.0.10") from None
        return value

    @model_validator(mode="after")
    def _whole(self) -> Kubelet:
        lonely = sorted(set(self.eviction_soft) ^ set(self.eviction_soft_grace_period))
        if lonely:
            raise ValueError(
                f"{lonely[0]} is only in one of evictionSoft and evictionSoftGracePeriod; the kubelet needs both"
            )
        high, low = self.image_gc_high_threshold_percent, self.image_gc_low_threshold_percent
        if high is not None and low is not None and high <= low:
            raise ValueError(
                f"imageGCHighThresholdPercent {high} is not above imageGCLowThresholdPercent {low}, so no image would "
                "ever be removed; raise it"
            )
        return self

    def to_manifest(self) -> dict[str, Any]:
        """The fields that are given, as an EC2NodeClass has them."""
        found = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {key: value for key, value in found.items() if value not in ({}, [])}


def _signal(key: str) -> None:
    if key not in EVICTION_SIGNALS:
        raise ValueError(f"{key!r} is not an eviction signal; one of {', '.join(EVICTION_SIGNALS)}")


def owned_fields() -> Mapping[str, str]:
    """Field of the KubeletConfiguration -> the field of the cluster file that is to be used instead."""
    return {str(field.alias): f"nodeClass.kubelet.{field.alias}" for field in Kubelet.model_fields.values()}
