"""The few calls of NVIDIA's driver API that a throughput probe makes, answered from the node's GPU table.

Values and error codes are those of ``cuda.h`` (CUDA 13). A kernel does not run: its result is known (``kernel``) and it
takes its time, which is shared among the processes that use the same GPU at the moment (``sharing``). Waiting is
sleeping: fifty nodes with four sharers each fit two cores. A process that the machine woke too late finds its kernels
done, as a GPU does not wait for its host.

Containers load it from the folder on their ``PYTHONPATH``, and two hundred of them start at once: nothing that is slow
to import, so no dataclasses and no pathlib, and imports are relative, because it is no part of the sandbox's package
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .driver import Driver


class _Library:
    """Functions that take the attributes of ctypes' (``argtypes``, ``restype``)."""

    def __init__(self) -> None:
        driver = Driver()
        for name in dir(driver):
            if name.startswith("cu"):
                setattr(self, name, _function(getattr(driver, name)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"libcuda.so.1: undefined symbol: {name}")

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def _function(method: Callable[..., int]) -> Callable[..., int]:
    def call(*arguments: Any) -> int:
        return method(*arguments)

    return call


def library() -> Any:
    return _Library()
