"""The asset event about interruptions: its asset, and its payload as the trigger writes it and the DAG reads it.

One event is about one batch of messages. A run may have several events, and several may be about one instance: the
messages come more than once, and Airflow may put any number of events into a run. :func:`by_instance` makes one case
per instance of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gpu_fleet.core.interruptions.messages import Notice
from gpu_fleet.core.interruptions.ways import newest_per_instance

_SCHEME = "gpu-fleet"


def uri(cluster: str) -> str:
    """``gpu-fleet://<cluster>/interruptions``, also the asset's name; cluster is the spec's name."""
    return f"{_SCHEME}://{cluster}/interruptions"


@dataclass(frozen=True)
class Case:
    """One instance of this cluster, and what the trigger found and did when it read the message.

    :ivar node: name of the Node; ``None`` while the instance is launching, and where the cluster could not be asked.
    :ivar node_uid: of that Node: another one may get its name later.
    :ivar claim: name of the NodeClaim; ``None`` for a node that Karpenter does not own.
    :ivar pool: name of the NodePool, empty for a node of a node group.
    :ivar node_group: name of the managed node group, empty for a node of a pool.
    :ivar marked: the node carries the mark of this notice, or of a more urgent one.
    :ivar cordoned: the node is unschedulable, whoever cordoned it.
    :ivar sent: when SQS got the message, epoch seconds; ``None`` if it does not say.
    :ivar problem: why the node could not be looked at or written to; ``None`` if nothing is left to do. With a problem,
        whether the instance is of this cluster at all may be unknown (no node, no claim).
    :ivar unannounced: the instance was the pool's, and an interruption that no message has told ended it: its node is
        going, or gone.
    :ivar pods: those on the node when it was cordoned, as ``victims.seen_pods`` gives them.
    """

    notice: Notice
    node: str | None = None
    node_uid: str | None = None
    claim: str | None = None
    pool: str = ""
    node_group: str = ""
    marked: bool = False
    cordoned: bool = False
    sent: float | None = None
    problem: str | None = None
    unannounced: bool = False
    pods: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **self.notice.to_json(),
            "node": self.node,
            "nodeUid": self.node_uid,
            "claim": self.claim,
            "pool": self.pool,
            "nodeGroup": self.node_group,
            "marked": self.marked,
            "cordoned": self.cordoned,
            "sent": self.sent,
            "problem": self.problem,
            **({"unannounced": True} if self.unannounced else {}),
            "pods": [dict(pod) for pod in self.pods],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Case:
        """
        :raises ValueError: if the mapping holds no notice.
        """
        sent = value.get("sent")
        return cls(
            notice=Notice.from_json(value),
            node=value.get("node"),
            node_uid=value.get("nodeUid"),
            claim=value.get("claim"),
            pool=str(value.get("pool") or ""),
            node_group=str(value.get("nodeGroup") or ""),
            marked=bool(value.get("marked")),
            cordoned=bool(value.get("cordoned")),
            sent=None if sent is None else float(sent),
            problem=value.get("problem"),
            unannounced=bool(value.get("unannounced")),
            pods=tuple(pod for pod in value.get("pods") or () if isinstance(pod, Mapping)),
        )


@dataclass(frozen=True)
class Payload:
    """An event's payload.

    :ivar cluster: name of the cluster file.
    :ivar read_at: when the messages were read, epoch seconds.
    :ivar skipped: notices of the same batch that are no case, by cause: ``ignored`` (rebalance, by the file),
        ``unknown`` (no node or NodeClaim of ours), ``leaving`` (the node was being removed already), ``weaker``
        (a more urgent notice about the instance is in the batch).
    """

    cluster: str
    read_at: float
    cases: tuple[Case, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "cluster": self.cluster,
            "read_at": self.read_at,
            "notices": [case.to_json() for case in self.cases],
            "skipped": dict(self.skipped),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Payload:
        """
        :raises ValueError: if the mapping is no payload of this asset.
        """
        try:
            return cls(
                cluster=str(value["cluster"]),
                read_at=float(value["read_at"]),
                cases=tuple(Case.from_json(each) for each in value["notices"]),
                skipped={str(cause): int(count) for cause, count in (value.get("skipped") or {}).items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"no event about interruptions: {error!r}") from error


def by_instance(payloads: Iterable[Payload]) -> dict[str, Case]:
    """Instance id -> one case, of any number of events in any order, sorted by instance.

    The notice is the one that counts. What was found of the cluster is the newest finding without a problem, if any:
    an event that was sent while the API server was away must not hide what a copy of its message brought.
    """
    ordered = sorted(payloads, key=lambda each: each.read_at)
    cases = [case for payload in ordered for case in payload.cases]
    notices = newest_per_instance([case.notice for case in cases])
    found: dict[str, Case] = {}
    for case in cases:
        known = found.get(case.notice.instance)
        if known is None or known.problem is not None or case.problem is None:
            found[case.notice.instance] = case
    pods: dict[str, dict[str, Mapping[str, Any]]] = {}
    for case in cases:
        for pod in case.pods:
            pods.setdefault(case.notice.instance, {}).setdefault(str(pod.get("uid")), pod)
    return {
        name: replace(found[name], notice=notices[name], pods=tuple(pods.get(name, {}).values()))
        for name in sorted(found)
    }
