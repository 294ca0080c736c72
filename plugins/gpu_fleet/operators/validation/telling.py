"""Calls the notifiers of the spec when a pool's state changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.links import report_path
from gpu_fleet.operators.base import attempt

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from gpu_fleet.core.pools.assets import PoolState
    from gpu_fleet.core.spec.operations import Notification

#: Key in Airflow's task state store: which notifiers have been notified of which change, so that a retry notifies none
#: twice.
TOLD = "told"


@dataclass(frozen=True)
class Change:
    """A pool's state has changed."""

    cluster: str
    pool: str
    was: PoolState
    now: PoolState
    reason: str
    message: str


def notify_change(
    operator: BaseOperator,
    context: Mapping[str, Any],
    entries: Sequence[Notification],
    change: Change,
    *,
    key: str = TOLD,
) -> None:
    """Call each notifier once; one that fails is logged and changes nothing.

    :param entries: ``validation.notify`` of the cluster file.
    :param key: where the task's state store keeps what was told; a task that tells of several pools has one for each.
    """
    if not entries:
        return
    from gpu_fleet.hooks.notifiers import send, ui_url

    ti, store = context["ti"], context["task_state_store"]
    variables = {
        "message": f"GPU pool {change.pool} of cluster {change.cluster}: {change.was} -> {change.now}: "
        f"{change.reason}: {change.message[:1000]}",
        "cluster": change.cluster,
        "pool": change.pool,
        "was": str(change.was),
        "now": str(change.now),
        "reason": change.reason,
        "report_url": ui_url(report_path(ti.dag_id, ti.run_id)),
    }
    # Recorded after each one: a task that dies in between may call one notifier twice, but never leaves one out.
    this = {"was": str(change.was), "now": str(change.now), "attempt": attempt(context)}
    kept = store.get(key) or {}
    told = dict(kept.get("notifiers") or {}) if kept.get("change") == this else {}
    for index, entry in enumerate(entries):
        name = f"{index} {entry.notifier}"
        if name in told:
            operator.log.info("notifier %s was called by an earlier try", entry.notifier)
            continue
        problem = send(entry.model_dump(mode="json"), f"validation.notify[{index}]", variables)
        if problem is None:
            operator.log.info("notifier %s called: %s -> %s", entry.notifier, change.was, change.now)
        else:
            operator.log.error("notifier failed; the verdict is not affected: %s", problem)
        told[name] = problem or "told"
        store.set(key, {"change": this, "notifiers": told})
