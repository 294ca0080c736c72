"""The pods on interrupted nodes as they were before: whose they are, since when they ran, what they held. Pure.

A pod's object goes with it, so what a report needs of it is kept from the first look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.objects import epoch, gpus_requested


@dataclass(frozen=True)
class Victim:
    """
    :ivar kind: of its controller; empty for a pod without one.
    :ivar owner: name of its controller.
    :ivar owner_uid: of its controller.
    :ivar started: epoch seconds at which it began to run; ``None`` if it never did.
    :ivar gpus: how many GPUs, or shares of one, it holds.
    """

    namespace: str
    name: str
    uid: str
    node: str
    kind: str = ""
    owner: str = ""
    owner_uid: str = ""
    started: float | None = None
    gpus: int = 0

    @classmethod
    def of(cls, pod: Mapping[str, Any]) -> Victim:
        metadata, status = pod["metadata"], pod.get("status") or {}
        owners: list[Mapping[str, Any]] = metadata.get("ownerReferences") or []
        controller = next((each for each in owners if each.get("controller")), {})
        return cls(
            namespace=str(metadata.get("namespace", "")),
            name=str(metadata.get("name", "")),
            uid=str(metadata.get("uid", "")),
            node=str((pod.get("spec") or {}).get("nodeName") or ""),
            kind=str(controller.get("kind") or ""),
            owner=str(controller.get("name") or ""),
            owner_uid=str(controller.get("uid") or ""),
            started=epoch(status.get("startTime")),
            gpus=gpus_requested(pod),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "node": self.node,
            "kind": self.kind,
            "owner": self.owner,
            "ownerUid": self.owner_uid,
            "started": self.started,
            "gpus": self.gpus,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Victim:
        started = value.get("started")
        return cls(
            namespace=str(value.get("namespace", "")),
            name=str(value.get("name", "")),
            uid=str(value.get("uid", "")),
            node=str(value.get("node", "")),
            kind=str(value.get("kind", "")),
            owner=str(value.get("owner", "")),
            owner_uid=str(value.get("ownerUid", "")),
            started=None if started is None else float(started),
            gpus=int(value.get("gpus") or 0),
        )


#: Controllers whose pods the drain leaves: they belong to the node.
_OF_THE_NODE = frozenset({"DaemonSet", "Node"})


def displaced(victims: Iterable[Victim], ended: Mapping[str, float]) -> list[dict[str, Any]]:
    """The arguments of the gate ``pods_placed``: per controller the pods of it that are to come back.

    :param ended: UID to the epoch seconds at which the pod was asked to go, or was gone.
    """
    found: dict[str, dict[str, Any]] = {}
    for victim in victims:
        if victim.uid not in ended or not victim.owner_uid or victim.kind in _OF_THE_NODE:
            continue
        entry = found.setdefault(
            victim.owner_uid,
            {
                "namespace": victim.namespace,
                "kind": victim.kind,
                "name": victim.owner,
                "uid": victim.owner_uid,
                "evicted": [],
                "since": ended[victim.uid],
            },
        )
        entry["evicted"].append(victim.uid)
        entry["since"] = min(entry["since"], ended[victim.uid])
    return [{**entry, "evicted": sorted(entry["evicted"])} for _, entry in sorted(found.items())]


def gpu_seconds(victims: Iterable[Victim], ended: Mapping[str, float]) -> float:
    """GPU seconds that these pods had computed when they ended: what is lost at most, if none has saved its work.

    :param ended: UID to epoch seconds; pods that are not in it do not count.
    """
    return sum(
        victim.gpus * max(0.0, ended[victim.uid] - victim.started)
        for victim in victims
        if victim.uid in ended and victim.started is not None
    )
