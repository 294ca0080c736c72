"""How a GPU's time is shared among the processes that use it at the moment.

- time-slicing: each gets an equal part while others work, all of it while alone; with SANDBOX_GPU_SHARE set this
  process is the starved one and gets that part as long as there are others;
- MPS: each gets the part of the multiprocessors that the daemon set, whatever the others do.

Processes know of each other through one file each in SANDBOX_GPU_USE/<uuid>/<pid> (pid, name, MiB, share), whose time
of change says when it last worked.
"""

from __future__ import annotations

import atexit
import os
import time
from contextlib import suppress

from .devices import MIB, Device

CONTEXT_MIB = 254  # what a context itself takes, as with vectorAdd
#: Real seconds without a launch after which a process does not use its GPU any more; between two looks at the others.
_IDLE, _LOOK = 2.0, 0.05
_REAL_TIME = time.time


class Sharing:
    """Which part of a GPU this process has."""

    def __init__(self, device: Device) -> None:
        self._folder = os.path.join(os.environ.get("SANDBOX_GPU_USE", "/nonexistent"), device.uuid)
        self._name = str(os.getpid())
        self._file = os.path.join(self._folder, self._name)
        self.replicas = int(os.environ.get("SANDBOX_MPS_REPLICAS", "0"))
        self._share = float(os.environ.get("SANDBOX_GPU_SHARE", "0"))
        self._looked = self._touched = 0.0
        self._others: list[float] = []

    def others(self) -> list[float]:
        """The shares of the other processes that work now; 0 for those that get what is left."""
        now = _REAL_TIME()
        if now - self._looked < _LOOK:
            return self._others
        self._looked, self._others = now, []
        for name, changed, fields in self._entries():
            if now - changed > _IDLE:
                continue
            if not os.path.exists(f"/proc/{name}"):  # killed before it could tidy up
                _remove(os.path.join(self._folder, name))
                continue
            self._others.append(float(fields[3]) if len(fields) > 3 else 0.0)
        return self._others

    def _entries(self) -> list[tuple[str, float, list[str]]]:
        """Name, time of change and fields of the others' files."""
        found = []
        for entry in os.scandir(self._folder) if os.path.isdir(self._folder) else []:
            if entry.name == self._name:
                continue
            try:
                with open(entry.path) as file:
                    found.append((entry.name, entry.stat().st_mtime, file.read().split("\t")))
            except FileNotFoundError:
                continue
        return found

    def part(self) -> float:
        """Of the GPU's time, between 0 and 1."""
        if self.replicas:
            return self.thread_percentage / 100
        others = self.others()
        if not others:
            return 1.0
        if self._share:
            return self._share
        left = 1.0 - sum(others)
        return left / (1 + sum(1 for share in others if not share))

    @property
    def thread_percentage(self) -> int:
        """``set_default_active_thread_percentage`` of the MPS daemon (k8s-device-plugin ``mps/daemon.go``)."""
        return 100 // self.replicas if self.replicas else 100

    def enter(self, allocated: int) -> None:
        """Tell the others, or how much memory is taken now."""
        os.makedirs(self._folder, exist_ok=True)
        fields = (self._name, "python3", str(CONTEXT_MIB + allocated // MIB), str(self._share))
        with open(self._file, "w") as file:
            file.write("\t".join(fields) + "\n")
        atexit.register(self.leave)

    def works(self) -> None:
        now = _REAL_TIME()
        if now - self._touched > _IDLE / 8:
            self._touched = now
            if os.path.exists(self._file):
                os.utime(self._file)

    def leave(self) -> None:
        _remove(self._file)

    def used_by_others(self) -> int:
        """Bytes."""
        alive = [fields for name, _, fields in self._entries() if os.path.exists(f"/proc/{name}")]
        return sum(int(fields[2]) * MIB for fields in alive if len(fields) > 2)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
