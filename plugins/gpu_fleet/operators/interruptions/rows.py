"""What a drain's report says of each node, and what the lost work costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.drain.actions import STILL_RAN, STILL_TERMINATING
from gpu_fleet.core.drain.records import Outcome, PodRecord
from gpu_fleet.core.interruptions.report import outcome_of
from gpu_fleet.core.interruptions.victims import gpu_seconds, seeds
from gpu_fleet.core.interruptions.ways import ACTED, Owner, Way

if TYPE_CHECKING:
    from gpu_fleet.core.aws.costs import Price
    from gpu_fleet.core.interruptions.handling import Departed, NodePlan
    from gpu_fleet.core.interruptions.nodes import OurNode
    from gpu_fleet.core.spec import ClusterSpec


#: How the reason of a pod begins that should have gone and is there.
_HELD = (STILL_RAN, STILL_TERMINATING)


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
    acted = plan.way in ACTED
    gone = [record.gone_at for record in mine if record.gone_at is not None]
    held = any(record.outcome is Outcome.LEFT and record.reason.startswith(_HELD) for record in mine)
    still = held or any(record.gone_at is None and record.outcome is not Outcome.LEFT for record in mine)
    words = [record.to_json() for record in mine]
    return {
        **plan.node.to_json(),
        "kind": plan.notice.kind.value,
        "at": plan.notice.at,
        "seen": plan.seen,
        "deadline": plan.notice.deadline,
        "action": plan.notice.action,
        "way": plan.way.value,
        "why": plan.decision.why,
        "outcome": outcome_of(words, acted=acted, unseen=unseen.get(plan.name, ""), held=held),
        "emptiedAt": max(gone) if gone and not still else None,
        "removed": removed.get(plan.name, ""),
    }


def with_departed(records: Iterable[PodRecord], departed: Iterable[Departed], now: float) -> list[PodRecord]:
    """The drain's records and those of the pods that the trigger saw on nodes that are gone.

    What an earlier try of the task did to such a pod is in the drain's records already, and stays.
    """
    found = {record.uid: record for record in records}
    for gone in departed:
        for uid, row in seeds(gone.case.pods, gone.name, gone.notice.deadline).items():
            found.setdefault(uid, PodRecord.from_json(row))
        for record in found.values():
            if record.node == gone.name and record.gone_at is None:
                record.leave(now)
                record.reason = record.reason or "its node was gone when this run looked"
    return list(found.values())


def departed_row(gone: Departed, records: Iterable[PodRecord], now: float) -> dict[str, Any]:
    case, notice = gone.case, gone.notice
    mine = [record.to_json() for record in records if record.node == gone.name]
    what = outcome_of(mine, acted=True, unseen="" if gone.in_time else "gone")
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
        "why": "it was gone when this run looked"
        + ("" if gone.in_time else ", after its end: whether its pods ended in time is unknown"),
        "outcome": what,
        "emptiedAt": now if gone.in_time else None,
        "removed": "",
    }


def cost_of(
    spec: ClusterSpec, nodes: Iterable[OurNode], records: Iterable[PodRecord], ended: Mapping[str, float]
) -> tuple[float | None, str]:
    """What the lost GPU time costs, and by which prices; ``None`` if a price, a node's GPUs or the node itself is
    unknown.

    :param nodes: those that are still there; of one that is gone the instance type is unknown.
    :param ended: see :func:`ended_of`.
    """
    from gpu_fleet.hooks.cluster.prices import prices_of_nodes

    by_name = {node.name: node for node in nodes}
    lost = [(record.node, seconds) for record in records if (seconds := gpu_seconds([record], ended))]
    if not lost:
        return 0.0, ""
    prices = prices_of_nodes(spec, by_name.values())
    total = 0.0
    used: list[Price] = []
    for name, seconds in lost:
        node = by_name.get(name)
        if node is None:
            return None, prices.describe(*used)
        price = prices.instance(node.instance_type, node.capacity_type, node.zone)
        used.append(price)
        if price.usd is None or not node.gpus:
            return None, prices.describe(*used)
        total += seconds / 3600 * price.usd / node.gpus
    return total, prices.describe(*used)
