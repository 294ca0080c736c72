"""Waits whether Karpenter drains a node with a scheduled change itself, before a drain of our own is planned.

Karpenter asks EC2 once a minute which instances have a scheduled event or a failed status check, and deletes their
NodeClaims at once, however far ahead the event is (``core/spec/components.py``, ``may_poll_ec2``). Whether it may ask
is up to its role, which this package does not know for sure. So it looks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.interruptions.handling import NodePlan
from gpu_fleet.core.interruptions.ways import KARPENTER_POLL_S, Decision, Way, decide, may_act_first
from gpu_fleet.operators.interruptions.fleet_nodes import fleet_nodes

if TYPE_CHECKING:
    from gpu_fleet.core.interruptions.nodes import OurNode
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

log = logging.getLogger(__name__)
#: Seconds between two looks at the nodes.
LOOK_S = 3.0


def await_karpenter(
    kube: KubeClient,
    spec: ClusterSpec,
    plans: Iterable[NodePlan],
    *,
    patience_s: float = KARPENTER_POLL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> list[NodePlan]:
    """The plans, in which a node that Karpenter has begun to remove is watched instead.

    It returns as soon as that is known of all; at the latest when Karpenter has had the time for a look at EC2 since
    the message came, and so early that a drain of our own still has ``drain.timeout`` before the instance ends.
    """
    listed = list(plans)
    waiting = {
        plan.node.uid: plan
        for plan in listed
        if plan.way is Way.PLAN and may_act_first(plan.notice, plan.node.owner, spec)
    }
    decided: dict[str, NodePlan] = {}
    if waiting:
        log.info("waiting whether Karpenter drains %s itself", ", ".join(plan.name for plan in waiting.values()))
    while waiting:
        try:
            nodes = {node.uid: node for node in fleet_nodes(kube, spec).ours.values()}
        except GpuFleetError as error:
            log.warning("the nodes could not be looked at: %s", error.message)
            nodes = {uid: plan.node for uid, plan in waiting.items()}
        now = kube.now()
        for uid, plan in list(waiting.items()):
            found = _found(plan, nodes.get(uid), spec)
            if found is not None:
                log.info("node %s: %s", plan.name, found.decision.why)
                decided[uid] = found
            if found is not None or now >= _until(plan, spec, patience_s):
                del waiting[uid]
        if waiting:
            sleep(LOOK_S)
    return [decided.get(plan.node.uid, plan) for plan in listed]


def _found(plan: NodePlan, node: OurNode | None, spec: ClusterSpec) -> NodePlan | None:
    """The plan that follows from what became of the node; ``None`` if nothing has yet."""
    if node is not None and node.drained_by:
        return replace(plan, node=node, decision=Decision(Way.NOTE, f"run {node.drained_by} drains it"))
    if node is None or node.deleted:
        found = plan.node if node is None else node
        return replace(plan, node=found, decision=decide(plan.notice, found.owner, spec, leaving=True))
    return None


def _until(plan: NodePlan, spec: ClusterSpec, patience_s: float) -> float:
    until = plan.seen + patience_s
    end = plan.notice.deadline
    return until if end is None else min(until, end - float(spec.drain.timeout))
