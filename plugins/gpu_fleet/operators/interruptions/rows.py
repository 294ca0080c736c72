"""What a drain's report says of each node, and what the lost work costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.drain.records import Outcome, PodRecord
from gpu_fleet.core.interruptions.report import outcome_of
from gpu_fleet.core.interruptions.victims import gpu_seconds, seeds
from gpu_fleet.core.interruptions.ways import Owner, Way

if TYPE_CHECKING:
    from gpu_fleet.core.interruptions.handling import Departed, NodePlan
    from gpu_fleet.core.interruptions.nodes import OurNode
    from gpu_fleet.core.spec import ClusterSpec


def ended_of(records: Iterable[PodRecord]) -> dict[str, float]:
    """UID to when the pod stopped working, of those that ended by the interruption before they had finished."""
    return {
        record.uid: record.asked_at or record.gone_at or 0.0
        for record in records
        if record.outcome not in (Outcome.LEFT, Outcome.WAITING) and (record.asked_at or record.gone_at)
    }


def node_row(
    plan: NodePlan, records: Iterable[PodRecord], unseen: Mapping[str, str], removed: Mapping[str, str]
) -> dict[str, Any]:
    mine = [record for record in records if record.node == plan.name]
    acted = plan.way in (Way.DRAIN, Way.WATCH, Way.ENDING)
    gone = [record.gone_at for record in mine if record.gone_at is not None]
    still = [record for record in mine if record.gone_at is None and record.outcome is not Outcome.LEFT]
    return {
        **plan.node.to_json(),
        "kind": plan.notice.kind.value,
        "at": plan.notice.at,
        "seen": plan.seen,
        "deadline": plan.notice.deadline,
        "action": plan.notice.action,
        "way": plan.way.value,
        "why": plan.decision.why,
        "outcome": outcome_of([record.to_json() for record in mine], acted=acted, unseen=unseen.get(plan.name, "")),
        "emptiedAt": max(gone) if gone and not still else None,
        "removed": removed.get(plan.name, ""),
    }


def records_of(gone: Departed, now: float) -> list[PodRecord]:
    """The pods that the trigger saw on a node that is gone."""
    rows = seeds(gone.case.pods, gone.name, gone.notice.deadline).values()
    records = [PodRecord.from_json(row) for row in rows]
    for record in records:
        record.leave(now)
        record.reason = "its node was gone when this run began"
    return records


def departed_row(gone: Departed, now: float) -> dict[str, Any]:
    case, notice = gone.case, gone.notice
    what = outcome_of(({"outcome": "Gone"} for _ in case.pods), acted=True, unseen="" if gone.in_time else "gone")
    return {
        "node": gone.name,
        "uid": case.node_uid,
        "instance": notice.instance,
        "owner": (Owner.KARPENTER if case.pool else Owner.NODE_GROUP).value,
        "pool": case.pool or case.node_group,
        "claim": case.claim,
        "kind": notice.kind.value,
        "at": notice.at,
        "deadline": notice.deadline,
        "action": notice.action,
        "way": Way.NOTE.value,
        "why": "it was gone when this run began"
        + ("" if gone.in_time else ", after its end: whether its pods ended in time is unknown"),
        "outcome": what,
        "emptiedAt": now if gone.in_time else None,
        "removed": "",
    }


def usd_of(
    spec: ClusterSpec, nodes: Iterable[OurNode], records: Iterable[PodRecord], ended: Mapping[str, float]
) -> float | None:
    """What the lost GPU time costs at list prices; ``None`` if a price or a node's GPUs are unknown.

    :param ended: see :func:`ended_of`.
    """
    from gpu_fleet.hooks.files.prices import load_prices

    prices = load_prices(spec.region)
    by_name = {node.name: node for node in nodes}
    total = 0.0
    for record in records:
        seconds = gpu_seconds([record], ended)
        node = by_name.get(record.node)
        if not seconds or node is None:
            continue
        hourly = prices.hourly.get(node.instance_type)
        if hourly is None or not node.gpus:
            return None
        total += seconds / 3600 * hourly / node.gpus
    return total
