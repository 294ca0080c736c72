"""What earlier runs have handled, kept with the asset of the interruptions: a node that is gone carries no mark.

Copies of a message may start a run when the node has been gone for a while. Without this it would be reported, and its
pool restored, once more. Two runs that write at the same time may lose one entry, which costs a second report.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.interruptions.event import uri

#: Key in Airflow's asset state store: cause -> ``[run, epoch seconds]``.
HANDLED = "handled"
#: Seconds for which an entry is kept: SQS keeps a message of ours for 7 days, but a copy comes within minutes.
_KEPT_S = 24 * 3600.0
_MOST = 500


def handled(context: Mapping[str, Any], cluster: str) -> dict[str, str]:
    """Cause -> the run that has handled it; empty where the task has no such asset."""
    return {cause: str(entry[0]) for cause, entry in _read(context, cluster).items()}


def remember(context: Mapping[str, Any], cluster: str, causes: Iterable[str], run: str) -> None:
    """Note that this run has handled these."""
    store, now = _store(context, cluster), time.time()
    new = {cause: [run, now] for cause in causes}
    if store is None or not new:
        return
    kept = {cause: entry for cause, entry in _read(context, cluster).items() if now - float(entry[1]) < _KEPT_S}
    newest = sorted({**kept, **new}.items(), key=lambda item: float(item[1][1]))[-_MOST:]
    store.set(HANDLED, dict(newest))


def _read(context: Mapping[str, Any], cluster: str) -> dict[str, Any]:
    store = _store(context, cluster)
    value = store.get(HANDLED) if store is not None else None
    return dict(value) if isinstance(value, Mapping) else {}


def _store(context: Mapping[str, Any], cluster: str) -> Any:
    from airflow.sdk import Asset

    try:
        return context["asset_state_store"][Asset(name=uri(cluster), uri=uri(cluster))]
    except KeyError:
        return None
