"""Loaded by the interpreter of every ``python:*`` container: its clock, and the NVIDIA driver where it has a GPU.

``time.monotonic`` and ``time.sleep`` follow the sandbox's speed; ``time.time`` stays the node's clock, which the
kubelet's time stamps are from. ``ctypes.CDLL("libcuda.so.1")`` is the driver of ``fakecuda``, or fails as the dynamic
linker does where the NVIDIA runtime has put no driver into the container.
"""

from __future__ import annotations

import ctypes
import os
import subprocess  # noqa: F401 - keeps the real clock for its time-outs, if it is there before the clock is scaled
import time
from typing import Any

_NAMES = ("libcuda.so.1", "libcuda.so")
_LOAD = ctypes.CDLL


def scale(speed: float) -> None:
    """``speed`` seconds of the sandbox pass in one."""
    monotonic, sleep, began = time.monotonic, time.sleep, time.monotonic()
    time.monotonic = lambda: began + (monotonic() - began) * speed
    time.sleep = lambda seconds: sleep(float(seconds) / speed)


def load(name: Any, *args: Any, **kwargs: Any) -> Any:
    if name not in _NAMES:
        return _LOAD(name, *args, **kwargs)
    if os.environ.get("NVIDIA_VISIBLE_DEVICES", "void") in ("", "void", "none"):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")
    import fakecuda

    return fakecuda.library()


scale(float(os.environ.get("SANDBOX_SPEED", "1")))
ctypes.CDLL = load  # type: ignore[assignment, misc]
