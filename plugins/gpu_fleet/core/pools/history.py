"""Verdicts over time, per pool and per node. The asset events are the store; here each verdict becomes one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.pools.assets import PoolState, Topic

#: How many verdicts a report shows.
SHOWN = 10


@dataclass(frozen=True)
class Event:
    """One asset event of a pool, as Airflow stores it.

    :ivar at: epoch seconds.
    :ivar extra: what the publishing task wrote; of an event that was created through the REST API, anything.
    """

    topic: Topic
    at: float
    dag_id: str
    run_id: str
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class VerdictAt:
    """One verdict on a pool.

    :ivar at: epoch seconds.
    :ivar became: whether the pool's state changed with it.
    :ivar nodes: node to ``Passed`` or ``Failed: Reason``, as far as the event had room for them.
    :ivar without: nodes that were taken out of service.
    """

    at: float
    state: PoolState
    became: bool
    reason: str
    message: str
    dag_id: str
    run_id: str
    nodes: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "state": str(self.state),
            "became": self.became,
            "reason": self.reason,
            "message": self.message,
            "dagId": self.dag_id,
            "runId": self.run_id,
            "nodes": dict(self.nodes),
            "without": list(self.without),
        }


def verdicts(events: Iterable[Event], limit: int = SHOWN) -> list[VerdictAt]:
    """The newest verdicts first. ``validated`` and ``ready`` of one task are one verdict, on which the pool *became*
    ready.

    An event that was created through the REST API counts with what it has.
    """
    ordered = sorted(events, key=lambda event: (event.at, event.topic != Topic.READY))
    found: list[VerdictAt] = []
    state = PoolState.UNKNOWN
    for event in ordered:
        now = PoolState.NOT_READY if event.topic is Topic.NOT_READY else PoolState.READY
        if found and now is PoolState.READY and _same_task(found[-1], event):
            continue
        found.append(_verdict(event, now, became=_became(event, now, state)))
        state = now
    return found[::-1][:limit]


#: Seconds between the events of one task, which are stored in one transaction.
_ONE_TASK_S = 60.0


def _same_task(last: VerdictAt, event: Event) -> bool:
    return (
        last.state is PoolState.READY
        and (last.dag_id, last.run_id) == (event.dag_id, event.run_id)
        and event.at - last.at < _ONE_TASK_S
    )


def _became(event: Event, now: PoolState, before: PoolState) -> bool:
    """What the task knew when it wrote the event; without that, whether the verdict before was a different one."""
    was = event.extra.get("was")
    return was != str(now) if isinstance(was, str) else before is not now


def _verdict(event: Event, state: PoolState, *, became: bool) -> VerdictAt:
    extra = event.extra
    nodes = extra.get("nodes")
    without = extra.get("without")
    return VerdictAt(
        at=event.at,
        state=state,
        became=became,
        reason=str(extra.get("reason") or "NoReason"),
        message=str(extra.get("message") or ""),
        dag_id=event.dag_id,
        run_id=event.run_id,
        # Events of the package's first version have a list of names here.
        nodes={str(name): str(verdict) for name, verdict in nodes.items()} if isinstance(nodes, Mapping) else {},
        without=tuple(str(name) for name in without) if isinstance(without, list) else (),
    )


def by_node(found: Iterable[VerdictAt]) -> dict[str, list[tuple[VerdictAt, str]]]:
    """Node -> its verdicts, newest first; sorted by node."""
    nodes: dict[str, list[tuple[VerdictAt, str]]] = {}
    for verdict in found:
        for name, outcome in verdict.nodes.items():
            nodes.setdefault(name, []).append((verdict, outcome))
    return dict(sorted(nodes.items()))
