"""What a drain remembers across its tries: the pods that it has evicted, and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.operators.base import attempt
from gpu_fleet.operators.packing import pack, unpack

#: Key in Airflow's task state store for the pods that a drain has evicted, for its report after a retry.
RECORDS = "records"
#: Outcome of a pod whose eviction was about to be requested: all that is known of it after a killed try.
ASKED = "Asked"


def kept(context: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What an earlier try of this task has recorded; nothing once a person has cleared it."""
    stored = context["task_state_store"].get(RECORDS)
    if not isinstance(stored, Mapping) or stored.get("attempt") != attempt(context):
        return {}
    return dict(unpack(stored["records"]))


def keep(context: Mapping[str, Any], records: Mapping[str, Mapping[str, str]]) -> None:
    """Keep the records for the next try."""
    context["task_state_store"].set(RECORDS, {"records": pack(records), "attempt": attempt(context)})


def record(target: Any, outcome: str, reason: str) -> dict[str, str]:
    """A pod's line in the report."""
    return {"pod": str(target), "node": target.node, "outcome": outcome, "reason": reason}
