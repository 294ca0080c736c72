"""The GPUs of the node's table that a container may see."""

from __future__ import annotations

import os
from typing import NamedTuple

MIB = 1 << 20


class Device(NamedTuple):
    """A line of the GPU table."""

    uuid: str
    name: str
    driver: str
    memory: int
    capability: tuple[int, int]
    cuda: tuple[int, int]
    multiprocessors: int

    @classmethod
    def of(cls, row: str) -> Device:
        _, uuid, name, driver, memory, capability, cuda, multiprocessors = row.split("\t")
        return cls(uuid, name, driver, int(memory) * MIB, _pair(capability), _pair(cuda), int(multiprocessors))


def _pair(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor or 0)


def visible_devices() -> list[Device]:
    """The GPUs of the table that this container may see, in its order."""
    wanted = os.environ.get("NVIDIA_VISIBLE_DEVICES", "").split(",")
    with open(os.environ["SANDBOX_GPU_TABLE"]) as table:
        devices = [Device.of(row) for row in table.read().splitlines() if row]
    return [device for device in devices if wanted == ["all"] or device.uuid in wanted]
