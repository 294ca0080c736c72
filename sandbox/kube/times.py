"""Times as the API writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def now(micro: bool = False) -> str:
    """The present time as metav1.Time (seconds) or metav1.MicroTime."""
    moment = datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
