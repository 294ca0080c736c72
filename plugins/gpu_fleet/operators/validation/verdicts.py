"""From what a wave's probes have left to the reports on its nodes, and on the pool."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.kinds import EVENT, NODE_CLAIM
from gpu_fleet.core.kubernetes.names import SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import PoolClaim, gpus_requested, pool_claims
from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.core.validation.chosen import ChosenNodes
from gpu_fleet.core.validation.claims import NOMINATED, claims_unchanged, told_before
from gpu_fleet.core.validation.evidence import evidence_of
from gpu_fleet.core.validation.facts import Promise
from gpu_fleet.core.validation.judge import NO_MEMORY_ISOLATION, judge_node, seen_unasked
from gpu_fleet.core.validation.report import NodeReport, PoolReport
from gpu_fleet.core.validation.user_pods import NO_USER_PODS, user_pods_by_node
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.validation.fitness import look_at_nodes
from gpu_fleet.operators.validation.pods import ProbePods
from gpu_fleet.operators.validation.progress import Plan, Progress

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient
    from gpu_fleet.operators.pool import PoolOperator


def judge_wave(
    operator: PoolOperator, probe: Probe, chosen: ChosenNodes, plan: Plan, pods: ProbePods
) -> list[NodeReport]:
    """The reports on the nodes of a wave whose probes are over."""
    from gpu_fleet.hooks.cluster.pods import pods_on

    if not plan.rounds:
        return []
    kube, promise = operator.kube, Promise.of(operator.spec, operator.this_pool)
    facts = {each.name: each for each in look_at_nodes(operator, [round_.node for round_ in plan.rounds])}
    left, events = pods.list(), kube.list(EVENT, operator.spec.validation.namespace)
    there = pods_on(kube, (round_.node for round_ in plan.rounds))
    user_pods = user_pods_by_node(there, events, plan.since)
    now = kube.now()
    reports = [
        judge_node(
            probe,
            evidence_of(
                probe,
                round_,
                facts[round_.node],
                promise,
                left,
                events,
                physical=chosen.physical,
                replicas=chosen.replicas,
                now=now,
                user_pods=user_pods.get(round_.node, NO_USER_PODS),
            ),
        )
        for round_ in plan.rounds
    ]
    return [replace(report, at=now) for report in reports]


def pool_report(
    operator: PoolOperator,
    context: Mapping[str, Any],
    probe: Probe,
    chosen: ChosenNodes,
    progress: Progress,
    earlier: Sequence[PoolReport],
) -> PoolReport:
    """The report on the pool, when all waves are over.

    :param earlier: reports of this run's probes before this one.
    """
    kube, spec, pool = operator.kube, operator.spec, operator.this_pool
    reports = tuple(progress.reports(context))
    claims = pool_claims(kube.list(NODE_CLAIM, label_selector=operator.of_pool()), pool.name)
    check = claims_unchanged(
        chosen,
        claims,
        _who_may_have_asked(kube, [claim for claim in claims if claim.name not in chosen.node_claims]),
        _claim_events(kube) if {claim.name for claim in claims} != set(chosen.node_claims) else (),
        our_namespaces={spec.validation.namespace, SYSTEM_NAMESPACE},
        known=told_before(chosen, earlier, reports),
    )
    time_sliced = pool.shared and not pool.mps
    return PoolReport(
        cluster=spec.name,
        pool=pool.name,
        probe=str(probe),
        run=run_name(context),
        physical=chosen.physical,
        replicas=chosen.replicas,
        started_at=progress.since,
        finished_at=time.time(),
        nodes=reports,
        pool_checks=(check,) if reports else (),
        notes=((NO_MEMORY_ISOLATION,) if time_sliced else ()) + seen_unasked(reports),
        idle=chosen.idle,
    )


def _who_may_have_asked(kube: KubeClient, added: Sequence[PoolClaim]) -> list[dict[str, Any]]:
    """The pods for which these NodeClaims may have come: those on their nodes, and those that wait for GPUs."""
    from gpu_fleet.hooks.cluster.pods import pods_on, unbound_pods

    if not added:
        return []
    # First those that wait: one that is bound meanwhile is seen twice rather than never.
    waiting = unbound_pods(kube, lambda pod: gpus_requested(pod) > 0)
    return [*waiting, *pods_on(kube, (claim.node for claim in added))]


def _claim_events(kube: KubeClient) -> list[dict[str, Any]]:
    """What Karpenter says of pods that wait for a node, and of NodeClaims; the latter have no namespace."""
    nominated = kube.list(EVENT, field_selector=f"reason={NOMINATED}")
    return nominated + kube.list(EVENT, "default", field_selector=f"involvedObject.kind={NODE_CLAIM.kind}")
