"""What happens to nodes that fail a revalidation: reported, quarantined, replaced, and released when they pass. Pure.

A node is replaced by deleting its NodeClaim. Karpenter does the rest: it drains the node through the Eviction API,
which honours PodDisruptionBudgets and ``karpenter.sh/do-not-disrupt``, without a time limit unless the NodeClaim has a
``terminationGracePeriod``; after that it deletes the pods (kubernetes-sigs/karpenter v1.14.1
``pkg/controllers/node/termination/terminator``). A job on a GPU could end that way, so a node is quarantined first
(:mod:`gpu_fleet.core.pools.quarantine`), and replaced only when no user's pod holds one of its GPUs any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.pools.assets import outcomes_of_nodes
from gpu_fleet.core.pools.quarantine import Judgement, Quarantine
from gpu_fleet.core.reasons.catalogue import NODE_CAUSES
from gpu_fleet.core.validation.report import Outcome, PoolReport


class Policy(StrEnum):
    """What the spec allows (``validation.onFailure.policy``)."""

    ALERT = "alert"
    QUARANTINE = "quarantine"
    REPLACE = "replace"


class Why(StrEnum):
    """Why a node that failed was left as it is."""

    ALERT_ONLY = "AlertOnly"  # the policy
    NOT_THE_NODE = "NotTheNode"  # the cause does not lie in the node: another node would fail, too
    POOL_WIDE = "PoolWide"  # every node that was judged failed for the same reason
    BUDGET_SPENT = "BudgetSpent"  # this run has taken as many nodes out of service as it may
    INCONCLUSIVE = "Inconclusive"  # nothing is proven, neither way
    CORDONED_BY_OTHERS = "CordonedByOthers"  # not by this package: a person is working on it
    NODE_GONE = "NodeGone"
    IN_USE = "InUse"  # to be replaced, but a pod of a user holds a GPU there: quarantined until it ends
    NO_NODE_CLAIM = "NoNodeClaim"  # to be replaced, but Karpenter does not know it


@dataclass(frozen=True)
class Left:
    """A node that failed and was left as it is."""

    node: str
    reason: Why
    message: str = ""

    def to_json(self) -> dict[str, str]:
        return {"node": self.node, "reason": str(self.reason), "message": self.message}


@dataclass(frozen=True)
class Plan:
    """What is to be done about a pool's nodes.

    :ivar quarantine: nodes to take out of service (again), with their judgement.
    :ivar replace: those of them, or of the ones that are quarantined already, whose NodeClaim may go.
    :ivar release: quarantined nodes that have passed.
    """

    quarantine: tuple[tuple[str, Judgement], ...] = ()
    replace: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()


def judgements(reports: Sequence[PoolReport]) -> dict[str, Judgement]:
    """Node -> what came of it, its most decisive outcome over all probes."""
    passed: dict[str, set[str]] = {}
    causes: dict[tuple[str, Outcome], tuple[str, str, str]] = {}
    for report in reports:
        for node in report.nodes:
            if node.outcome is Outcome.PASSED:
                passed.setdefault(node.node, set()).add(report.probe)
            elif (cause := node.cause) is not None:
                causes.setdefault((node.node, node.outcome), (cause.reason, cause.message, report.probe))
    return {
        name: Judgement(outcome, *causes.get((name, outcome), ("", "", "")), frozenset(passed.get(name, ())))
        for name, (outcome, _) in outcomes_of_nodes(reports).items()
    }


def plan(
    policy: Policy,
    budget: int,
    judged: Mapping[str, Judgement],
    nodes: Mapping[str, PoolNode],
    quarantines: Mapping[str, Quarantine],
    *,
    spent: Iterable[str],
    probes: Collection[str],
) -> Plan:
    """What is to be done. Total; the same state gives the same plan, and re-planning after an interruption continues
    where it stopped.

    :param budget: how many nodes one run may take out of service.
    :param nodes: all nodes of the pool, by name.
    :param quarantines: of those that are quarantined.
    :param spent: nodes that this run has taken out of service before it was interrupted.
    :param probes: those that this run has for the pool, without any that it could not run at all.
    """
    used, left = set(spent), []
    quarantine: list[tuple[str, Judgement]] = []
    replace: list[str] = []
    everywhere = pool_wide(judged, nodes)
    # Nodes of an interrupted try first: they are part of the budget already. Then those in service: a node that is out
    # of service already, and perhaps cannot be replaced for weeks, must not keep a failing node in service.
    for name in sorted(judged, key=lambda name: (name not in used, name in quarantines, name)):
        found = judged[name]
        if found.outcome is Outcome.INCONCLUSIVE:
            left.append(Left(name, Why.INCONCLUSIVE, f"{found.reason}: {found.message}"))
        if found.outcome is not Outcome.FAILED:
            continue
        ours = name in quarantines
        why = _why_left(policy, found, nodes.get(name), everywhere, ours=ours)
        if why is not None:
            left.append(Left(name, why, f"{found.reason}: {found.message}"))
            continue
        if (not ours or policy is Policy.REPLACE) and name not in used:
            if len(used) >= budget:
                left.append(Left(name, Why.BUDGET_SPENT, f"this run may take at most {budget} node(s) out of service"))
                continue
            used.add(name)
        quarantine.append((name, found))
        if policy is Policy.REPLACE:
            replace.append(name)
    return Plan(tuple(quarantine), tuple(replace), _passed_again(judged, nodes, quarantines, probes), tuple(left))


def pool_wide(judged: Mapping[str, Judgement], nodes: Mapping[str, PoolNode]) -> str | None:
    """The reason for which every node that was judged failed, if there is one: then it is not the nodes' fault.

    Nodes that were not tested (not in the sample, cordoned) say nothing about the pool's defect. One judged node among
    several is no pattern; but a pool's only node cannot be distinguished from its pool.
    """
    found = [judged[name] for name in nodes if name in judged]
    if not found or (len(found) == 1 and len(nodes) > 1):
        return None
    reasons = {judgement.reason for judgement in found}
    return reasons.pop() if len(reasons) == 1 and {each.outcome for each in found} == {Outcome.FAILED} else None


def _why_left(
    policy: Policy,
    found: Judgement,
    node: PoolNode | None,
    everywhere: str | None,
    *,
    ours: bool,
) -> Why | None:
    if node is None:
        return Why.NODE_GONE
    if policy is Policy.ALERT:
        return Why.ALERT_ONLY
    if everywhere is not None:
        return Why.POOL_WIDE
    if found.reason not in NODE_CAUSES:
        return Why.NOT_THE_NODE
    if node.cordoned and not ours:
        return Why.CORDONED_BY_OTHERS
    return None


def _passed_again(
    judged: Mapping[str, Judgement],
    nodes: Mapping[str, PoolNode],
    quarantines: Mapping[str, Quarantine],
    probes: Collection[str],
) -> tuple[str, ...]:
    """Quarantined nodes that passed, including the probe that they had failed.

    That probe may not have reached the node this time, so passing only the others proves nothing. A probe that the spec
    has switched off would keep a node quarantined without an end; in that case the node must have passed every other
    probe.
    """
    return tuple(
        name
        for name in sorted(quarantines)
        if name in nodes
        and (found := judged.get(name)) is not None
        and found.outcome is Outcome.PASSED
        and (quarantines[name].probe in {"", *found.passed} or _without(quarantines[name].probe, probes, found))
    )


def _without(probe: str, probes: Collection[str], found: Judgement) -> bool:
    """Whether a node has passed every probe that exists, and the one that it had failed no longer does."""
    return bool(probes) and probe not in probes and set(probes) <= found.passed
