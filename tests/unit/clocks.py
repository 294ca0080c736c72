"""A worker or triggerer whose clock is off, while the API server's is right."""

from __future__ import annotations

import time
from typing import Any

import pytest

#: The modules of ours that read the clock of the machine for gates and clients.
_MODULES = (
    "gpu_fleet.hooks.kubernetes.transport",
    "gpu_fleet.hooks.kubernetes.aio",
    "gpu_fleet.triggers.looking",
    "gpu_fleet.triggers.gate",
    "gpu_fleet.triggers.waiting",
    "gpu_fleet.operators.base",
)

#: Seconds by which a clock is ahead of the server's.
SKEWS = (-600.0, -50.0, 0.0, 50.0, 600.0)


class SkewedTime:
    """The module :mod:`time` of a machine whose clock is off; its monotonic clock is none the worse for it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self) -> float:
        return time.time() + self._seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def skew_ours(monkeypatch: pytest.MonkeyPatch, seconds: float) -> SkewedTime:
    """Put our clock ahead of the API server's, which runs in the same process in tests."""
    clock = SkewedTime(seconds)
    for module in _MODULES:
        monkeypatch.setattr(f"{module}.time", clock)
    return clock
