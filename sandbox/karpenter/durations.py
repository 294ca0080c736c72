"""Go durations as Karpenter's API takes them (``720h``, ``Never``), and times of the API as epoch seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_PART = re.compile(r"(\d+(?:\.\d+)?)(h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def seconds(duration: str | None) -> float | None:
    """Seconds of a duration; None for ``Never`` and for a missing one.

    :raises ValueError: if it is not a duration.
    """
    if duration is None or duration == "Never":
        return None
    parts = _PART.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is not a duration")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def epoch(timestamp: str) -> float:
    """Epoch seconds of a metav1.Time or MicroTime."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def timestamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
