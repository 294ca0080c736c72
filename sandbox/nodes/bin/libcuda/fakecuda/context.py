"""A CUDA context: its memory, and when its kernels are done."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any, Protocol

from .devices import MIB, Device
from .sharing import CONTEXT_MIB, Sharing

#: Real seconds that a kernel takes alone on its GPU; short enough to count, long enough for two cores.
_KERNEL_SECONDS = 0.01
#: Real seconds that a process may wake up too late without losing GPU time.
_LAG = 1.0


class Kernel(Protocol):
    """What knows its result without running."""

    def result(self, threads: int, even: bool, b: float) -> bytes:
        """What the threads have stored."""
        ...


class Context:
    """A CUDA context: its memory by address, and when the GPU will have done what was launched.

    :ivar late: simulated seconds that the machine woke this process too late when it last waited.
    :ivar results: what kernels have stored where; computed only when the program reads it.
    """

    def __init__(self, device: Device, sharing: Sharing) -> None:
        self.device, self.sharing = device, sharing
        self.memory: dict[int, Any] = {}
        self.results: dict[int, tuple[Kernel, int, bool, float]] = {}
        self.done_at = self.late = 0.0

    @property
    def total(self) -> int:
        """Bytes; an MPS client too sees the whole GPU's."""
        return self.device.memory

    @property
    def limit(self) -> int:
        """Bytes; ``set_default_device_pinned_mem_limit`` of the MPS daemon, which shows in what is free."""
        return self.device.memory // max(1, self.sharing.replicas)

    @property
    def allocated(self) -> int:
        return sum(len(buffer) for buffer in self.memory.values())

    def free(self) -> int:
        mine = self.allocated + CONTEXT_MIB * MIB
        others = 0 if self.sharing.replicas else self.sharing.used_by_others()
        return max(0, self.limit - mine - others)

    def buffer(self, address: int, size: int) -> Any:
        """The ``size`` bytes at an address of the device, or None if they are not allocated."""
        for start, memory in self.memory.items():
            if start <= address and address + size <= start + len(memory):
                return (ctypes.c_ubyte * size).from_buffer(memory, address - start)
        return None

    def store(self) -> None:
        for address, (kernel, threads, even, b) in self.results.items():
            memory = self.buffer(address, threads * 4)
            if memory is not None:
                ctypes.memmove(memory, kernel.result(threads, even, b), threads * 4)
        self.results.clear()

    def launch(self) -> None:
        """One kernel joins the queue."""
        speed = float(os.environ.get("SANDBOX_SPEED", "1"))
        self.sharing.works()
        start = max(self.done_at, time.monotonic() - min(self.late, _LAG * speed))
        self.done_at, self.late = start + _KERNEL_SECONDS * speed / self.sharing.part(), 0.0

    def wait(self) -> None:
        left = self.done_at - time.monotonic()
        if left > 0:
            time.sleep(left)
        self.late = time.monotonic() - self.done_at if self.done_at else 0.0
