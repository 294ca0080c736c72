"""The plan of a drain that may take its time: what becomes of every pod on the nodes, and what is done next.

What a drain does with a single pod is decided in :mod:`gpu_fleet.core.drain.rules`; what it does with one whose node
ends at a known moment, in :mod:`gpu_fleet.core.drain.actions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gpu_fleet.core.drain.rules import PARAM_BARE_PODS, DrainRules, Fate, Pod, PodVerdict, judge_pod
from gpu_fleet.core.kubernetes.do_not_disrupt import protected_value
from gpu_fleet.core.kubernetes.names import ANNOTATION_DO_NOT_DISRUPT, LABEL_COMPONENT
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.core.kubernetes.pod_budgets import budgets_of, versions_of
from gpu_fleet.core.kubernetes.pod_end import is_finished


@dataclass(frozen=True)
class PodPlan:
    """One pod of the plan.

    :ivar missed: whether its eviction is a loss: false for pods that have finished and for our own.
    """

    namespace: str
    name: str
    uid: str
    node: str
    verdict: PodVerdict
    missed: bool = True

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class DrainPlan:
    """Every pod on the nodes, by its fate."""

    evict: Sequence[PodPlan] = field(default=())
    wait: Sequence[PodPlan] = field(default=())
    leave: Sequence[PodPlan] = field(default=())
    refuse: Sequence[PodPlan] = field(default=())

    @property
    def done(self) -> bool:
        return not (self.evict or self.wait or self.refuse)

    def refusal(self) -> str:
        """Why the drain must not start: each pod and the remedies."""
        lines = "".join(f"\n  - {plan} on {plan.node} {plan.verdict.message}" for plan in self.refuse)
        remedies = ""
        if any(plan.verdict.reason in ("AirflowTask", "Unreplicated") for plan in self.refuse):
            remedies = (
                "\nPods without a controller are evicted only on request: start a run with the Param "
                f"{PARAM_BARE_PODS}, or set drain.force: true in the cluster file"
            )
        count = len(self.refuse)
        return f"{count} pod{'' if count == 1 else 's'} must not be evicted:{lines}{remedies}"


def plan_drain(pods: Iterable[Pod], rules: DrainRules) -> DrainPlan:
    """The plan for all pods that are bound to the nodes to drain, in a stable order."""
    found: dict[Fate, list[PodPlan]] = {fate: [] for fate in Fate}
    for pod in pods:
        metadata = pod["metadata"]
        verdict = judge_pod(pod, rules)
        node = str((pod.get("spec") or {}).get("nodeName") or "")
        missed = not is_finished(pod) and LABEL_COMPONENT not in (metadata.get("labels") or {})
        found[verdict.fate].append(
            PodPlan(metadata["namespace"], metadata["name"], metadata["uid"], node, verdict, missed)
        )
    ordered = {fate: tuple(sorted(plans, key=lambda p: (p.node, str(p)))) for fate, plans in found.items()}
    return DrainPlan(ordered[Fate.EVICT], ordered[Fate.WAIT], ordered[Fate.LEAVE], ordered[Fate.REFUSE])


class Step(StrEnum):
    """What to do next with the pods that are still there."""

    DONE = "Done"
    EVICT = "Evict"
    DELETE = "Delete"
    GIVE_UP = "GiveUp"


def next_step(plan: DrainPlan, *, elapsed: float, timeout: float, deadline: float, policy: str) -> Step:
    """Decide from the plan and the clock.

    :param elapsed: seconds since the drain began.
    :param timeout: seconds for evictions (``drain.timeout``).
    :param deadline: seconds after which the drain has failed in any case (``deadlines.drain``).
    :param policy: ``drain.whenTimeExpires``: ``fail`` or ``delete``.
    :raises ValueError: for an unknown policy.
    """
    if policy not in ("fail", "delete"):
        raise ValueError(f"unknown policy {policy!r} for an expired drain")
    if plan.done:
        return Step.DONE
    if elapsed < timeout:
        return Step.EVICT
    if policy == "fail" or elapsed >= deadline:
        return Step.GIVE_UP
    return Step.DELETE


#: Seconds after which a refused eviction is retried in any case, even if no budget has changed.
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Blocked:
    """A pod whose eviction was refused.

    :ivar why: in words, with the pod's name.
    :ivar by_budget: whether PodDisruptionBudgets may be the cause: then nothing changes before they do.
    """

    uid: str
    why: str
    by_budget: bool


def held_by_budgets(
    blocked: Iterable[Blocked], pods: Iterable[Mapping[str, Any]], budgets: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """UID to the versions of its PodDisruptionBudgets, of the blocked pods that such a budget holds.

    A busy API server refuses with 429 as well: a pod that no budget selects is not held by one.
    """
    suspects = {each.uid for each in blocked if each.by_budget}
    return {
        pod["metadata"]["uid"]: versions
        for pod in pods
        if pod["metadata"]["uid"] in suspects and (versions := versions_of(pod, budgets))
    }


def pause_s(*, only_budgets: bool, elapsed: float, every: float) -> float:
    """Seconds until refused evictions are retried, whatever is observed meanwhile.

    If only budgets forbid them, the budgets are watched; a retry is a precaution, and each costs the start of a task.
    So the pause is then half of the time that the drain has taken, between ``every`` and :data:`LONGEST_PAUSE_S`.

    :param only_budgets: whether every refused pod is held by budgets that are watched.
    :param elapsed: seconds since the drain began.
    :param every: ``drain.retryEvery``.
    """
    if not only_budgets:
        return every
    return max(every, min(elapsed / 2, LONGEST_PAUSE_S))


def protection(
    pod: Pod, budgets: Iterable[Mapping[str, Any]], now: float | None = None, dead: Mapping[str, str] | None = None
) -> str:
    """What keeps a pod on its node, in words: PodDisruptionBudgets, Karpenter's annotation, its own finalizers, or a
    kubelet that does not answer.

    :param now: epoch seconds.
    :param dead: nodes that are not Ready, and why.
    """
    metadata = pod["metadata"]
    parts = [
        f"PodDisruptionBudget {budget['metadata']['name']} "
        f"(allowed disruptions {(budget.get('status') or {}).get('disruptionsAllowed', 'unknown')})"
        for budget in budgets_of(pod, budgets)
    ]
    if (value := protected_value(pod, now)) is not None:
        parts.append(f"annotation {ANNOTATION_DO_NOT_DISRUPT}" + ("" if value == "true" else f" ({value})"))
    if deleting(pod):
        finalizers = metadata.get("finalizers") or []
        parts.append(f"terminating, finalizers {', '.join(finalizers)}" if finalizers else "terminating")
    where = str((pod.get("spec") or {}).get("nodeName") or "")
    if dead and where in dead:
        parts.append(f"node {where} is not Ready ({dead[where]})")
    return ", ".join(parts) or "no PodDisruptionBudget found"
