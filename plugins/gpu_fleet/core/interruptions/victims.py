"""The pods that an interruption ended: who has to start them again, and what they had computed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.drain.records import PodRecord
from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT
from gpu_fleet.core.kubernetes.objects import epoch, gpus_requested
from gpu_fleet.core.kubernetes.pod_end import controller_of, grace_of, is_finished

#: Controllers whose pods belong to the node and are not expected elsewhere.
_OF_THE_NODE = frozenset({"DaemonSet", "Node"})


#: Pods of a node that an event carries at most.
_MOST = 250


def seen_pods(pods: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What an event keeps of the pods on a node: whoever evicts them, and however fast, the report knows them.

    Karpenter may have evicted them before a worker has begun; then nothing else tells that they were there.
    """
    found = []
    for pod in pods:
        metadata, owner = pod["metadata"], controller_of(pod)
        kind = "" if owner is None else str(owner.get("kind"))
        if kind in _OF_THE_NODE or is_finished(pod) or LABEL_COMPONENT in (metadata.get("labels") or {}):
            continue
        found.append(
            {
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "workload": "" if owner is None else f"{kind}/{owner.get('name')}",
                "owner_uid": "" if owner is None else str(owner.get("uid") or ""),
                "gpus": gpus_requested(pod),
                "started_at": epoch((pod.get("status") or {}).get("startTime")),
                "grace": grace_of(pod, -1),
            }
        )
    return found[:_MOST]


def seeds(pods: Iterable[Mapping[str, Any]], node: str, deadline: float | None) -> dict[str, Any]:
    """The drain's records of pods that the trigger saw, UID to JSON; those that are gone by now are known so."""
    found = {}
    for pod in pods:
        rule = "Evictable" if pod.get("workload") else "Unreplicated"
        record = PodRecord(node=node, deadline=deadline, rule=rule, **{key: pod[key] for key in _SEEN})
        found[record.uid] = record.to_json()
    return found


_SEEN = ("namespace", "name", "uid", "workload", "owner_uid", "gpus", "started_at", "grace")


def displaced(
    records: Iterable[PodRecord], ended: Mapping[str, float], announced: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The arguments of the gate ``pods_placed``: per controller the pods of it that are to come back.

    :param ended: UID to the epoch seconds at which the pod was asked to go, or was gone.
    :param announced: node to the epoch seconds at which its interruption was announced: where others evict, successors
        are created before this package knows that a pod is gone.
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
                "since": min(ended[record.uid], announced.get(record.node, ended[record.uid])),
            },
        )
        entry["evicted"].append(record.uid)
        entry["since"] = min(entry["since"], ended[record.uid], announced.get(record.node, ended[record.uid]))
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
