"""How a pool's GPUs are shared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gpu_fleet.core.spec.base import SpecModel


def _check_replicas(value: int) -> int:
    if value < 2:
        raise ValueError(
            f"{value} is not sharing, and with fewer than 2 replicas the device plugin fails on the node; "
            "write 2 or more, or sharing: {mode: exclusive}"
        )
    return value


def _check_rename(value: bool) -> bool:
    if value:
        raise ValueError(
            "needs a NodeOverlay that this version does not manage: without it Karpenter waits for nvidia.com/gpu "
            "without end; set it to false"
        )
    return value


class Exclusive(SpecModel):
    """Whole GPUs: one container per GPU."""

    mode: Literal["exclusive"] = "exclusive"


class TimeSlicing(SpecModel):
    """Time-slicing: each GPU is advertised `replicas` times. No memory isolation between the sharers."""

    mode: Literal["timeSlicing"]
    replicas: int = Field(
        le=48,
        description="How often each physical GPU is advertised; at least 2 (with 1 the device plugin fails).",
    )
    fail_requests_greater_than_one: bool = Field(
        default=True, description="Refuse a container that asks for 2 replicas: it would not get twice the GPU time."
    )
    rename_by_default: bool = Field(
        default=False,
        description="Must be false: Karpenter waits for nvidia.com/gpu; the node would offer nvidia.com/gpu.shared.",
    )

    _replicas = field_validator("replicas")(_check_replicas)
    _rename = field_validator("rename_by_default")(_check_rename)


class Mps(SpecModel):
    """CUDA Multi-Process Service: each GPU is advertised `replicas` times, each client limited to 1/replicas of its
    memory and threads. NVIDIA calls it experimental.
    """

    mode: Literal["mps"]
    replicas: int = Field(
        le=48,
        description="How often each physical GPU is advertised; 2 to 48 (clients of one MPS server since Volta).",
    )
    fail_requests_greater_than_one: bool = Field(
        default=True, description="Must be true: with MPS the device plugin always refuses such requests."
    )
    rename_by_default: bool = Field(
        default=False,
        description="Must be false: Karpenter waits for nvidia.com/gpu; the node would offer nvidia.com/gpu.shared.",
    )

    _replicas = field_validator("replicas")(_check_replicas)
    _rename = field_validator("rename_by_default")(_check_rename)

    @field_validator("fail_requests_greater_than_one")
    @classmethod
    def _always_refused(cls, value: bool) -> bool:
        if not value:
            raise ValueError("with MPS the device plugin always refuses requests for several shares; remove it")
        return value


Shared = TimeSlicing | Mps
Sharing = Annotated[Exclusive | TimeSlicing | Mps, Field(discriminator="mode")]
