"""What a drain keeps of its pods over a kill of its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.operators.base import attempt
from gpu_fleet.operators.packing import pack, unpack

#: Key in Airflow's task state store: the pods, for the report of a try that follows a killed one.
RECORDS = "records"


def kept(context: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier try of this task has stored; nothing once a person has cleared it."""
    stored = context["task_state_store"].get(RECORDS)
    if not isinstance(stored, Mapping) or stored.get("attempt") != attempt(context):
        return {}
    return dict(unpack(stored["records"]))


def keep(context: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Store the records for the next try."""
    context["task_state_store"].set(RECORDS, {"records": pack(dict(records)), "attempt": attempt(context)})
