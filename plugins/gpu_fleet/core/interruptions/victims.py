"""The pods that an interruption ended: who has to start them again, and what they had computed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.drain.records import PodRecord

#: Controllers whose pods belong to the node and are not expected elsewhere.
_OF_THE_NODE = frozenset({"DaemonSet", "Node"})


def displaced(records: Iterable[PodRecord], ended: Mapping[str, float]) -> list[dict[str, Any]]:
    """The arguments of the gate ``pods_placed``: per controller the pods of it that are to come back.

    :param ended: UID to the epoch seconds at which the pod was asked to go, or was gone.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        kind, _, name = record.workload.partition("/")
        if record.uid not in ended or not record.owner_uid or kind in _OF_THE_NODE:
            continue
        entry = found.setdefault(
            record.owner_uid,
            {
                "namespace": record.namespace,
                "kind": kind,
                "name": name,
                "uid": record.owner_uid,
                "evicted": [],
                "since": ended[record.uid],
            },
        )
        entry["evicted"].append(record.uid)
        entry["since"] = min(entry["since"], ended[record.uid])
    return [{**entry, "evicted": sorted(entry["evicted"])} for _, entry in sorted(found.items())]


def gpu_seconds(records: Iterable[PodRecord], ended: Mapping[str, float]) -> float:
    """GPU seconds that these pods had computed when they ended: what is lost at most, if none has saved its work.

    :param ended: UID to epoch seconds; pods that are not in it do not count.
    """
    return sum(
        record.gpus * max(0.0, ended[record.uid] - record.started_at)
        for record in records
        if record.uid in ended and record.started_at is not None
    )
