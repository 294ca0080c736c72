"""Reports of the throughput program, as it writes them."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.core.cluster_objects import NOW
from tests.unit.core.probe_objects import UUID

#: One launch of 72 multiprocessors (an A10G).
WORK = 72 * 4 * 256 * 32768 * 32


def report(
    *,
    begin: float = NOW - 60,
    seconds: float = 30.0,
    per_window: float = 10.0,
    alone_from: float | None = None,
    alone_per_window: float = 0.0,
    uuid: str = UUID,
    clock: float = 1.0,
    error: tuple[str, str] | None = None,
    gpu: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    """A report of windows of 0.2 s.

    :param begin: epoch seconds.
    :param seconds: length of the measurement by the monotonic clock.
    :param per_window: launches per window.
    :param alone_per_window: those from ``alone_from`` seconds on.
    :param clock: seconds of the node's clock in one of the monotonic one.
    """
    windows = round(seconds / 0.2)
    counts = [
        round(alone_per_window if alone_from is not None and index * 0.2 >= alone_from else per_window)
        for index in range(windows)
    ]
    elapsed = seconds * clock
    value: dict[str, Any] = {
        "schema": "gpu-fleet.io/throughput/v1",
        "startedAt": int((begin - 1) * 1000),
        "finishedAt": int((begin + elapsed + 0.5) * 1000),
        "driver": "570.133.20",
        "cuda": "12.8",
        "gpu": {
            "uuid": uuid,
            "name": "NVIDIA A10G",
            "memoryTotalMiB": 22500,
            "memoryFreeMiB": 21000,
            "multiprocessors": 72,
            "boardMemoryMiB": 23028,
        }
        | (gpu or {}),
        "work": WORK,
        "windows": {"from": int(begin * 1000), "elapsed": int(elapsed * 1000), "width": 200.0, "counts": counts},
        "verified": error is None,
        "error": None if error is None else {"reason": error[0], "message": error[1]},
    }
    if error is not None:
        value |= {"windows": None, "work": 0}
    return json.dumps(value | changes, separators=(",", ":"))
