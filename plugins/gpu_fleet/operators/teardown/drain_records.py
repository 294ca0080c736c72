"""A pod's line in the report of a teardown's drain."""

from __future__ import annotations

from typing import Any

#: Outcome of a pod whose eviction was about to be requested: all that is known of it after a killed try.
ASKED = "Asked"


def record(target: Any, outcome: str, reason: str) -> dict[str, str]:
    """A pod's line in the report."""
    return {"pod": str(target), "node": target.node, "outcome": outcome, "reason": reason}
