"""Which pods a pod may preempt. Source: kubernetes/kubernetes ``pkg/scheduler/framework/preemption``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sandbox.controllers.matching import selects
from sandbox.controllers.objects import Object, is_deleting, meta, seconds
from sandbox.controllers.scheduling.predicates import Refusal, refusal
from sandbox.controllers.scheduling.snapshot import NodeInfo, Snapshot, priority

NO_VICTIMS = "No preemption victims found for incoming pod"
NOT_HELPFUL = "Preemption is not helpful for scheduling"


@dataclass(frozen=True)
class Candidate:
    """One node and the pods to displace there."""

    node: str
    victims: tuple[Object, ...]
    violations: int


def not_eligible(pod: Object, snapshot: Snapshot) -> str | None:
    """Why this pod may not preempt at all now."""
    if pod["spec"].get("preemptionPolicy") == "Never":
        return "not eligible due to preemptionPolicy=Never."
    nominated = (pod.get("status") or {}).get("nominatedNodeName")
    if nominated in snapshot.nodes and any(
        is_deleting(other) and priority(other) < priority(pod) for other in snapshot.nodes[nominated].pods.values()
    ):
        return "not eligible due to a terminating pod on the nominated node."
    return None


def find(
    pod: Object, snapshot: Snapshot, refusals: dict[str, Refusal], budgets: Iterable[Object]
) -> tuple[Candidate | None, list[str]]:
    """The best node to make room on, and for each node without one the reason."""
    budgets = list(budgets)
    candidates: list[Candidate] = []
    reasons: list[str] = []
    for name, info in snapshot.nodes.items():
        objection = refusals.get(name)
        if objection is not None and not objection.resolvable:
            reasons.append(NOT_HELPFUL)
            continue
        candidate = _on_node(pod, info, snapshot, budgets)
        if candidate is None:
            reasons.append(NO_VICTIMS)
        else:
            candidates.append(candidate)
    return (min(candidates, key=_cost) if candidates else None), reasons


def _cost(candidate: Candidate) -> tuple[object, ...]:
    """Fewest broken budgets, then the least important victims, then fewest, then the ones started last."""
    priorities = [priority(victim) for victim in candidate.victims]
    started = min((seconds((victim.get("status") or {}).get("startTime")) for victim in candidate.victims), default=0.0)
    return candidate.violations, max(priorities), sum(priorities), len(priorities), -started, candidate.node


def _on_node(pod: Object, info: NodeInfo, snapshot: Snapshot, budgets: list[Object]) -> Candidate | None:
    lower = [other for other in info.pods.values() if priority(other) < priority(pod)]
    if not lower:
        return None
    bare = info.without(lower)
    if refusal(pod, bare, snapshot.replaced(bare)) is not None:
        return None
    protected, free = _split_by_budget(lower, budgets)
    victims: list[Object] = []
    violations = 0
    # Put back as many as fit, the protected and the important ones first.
    for group in (protected, free):
        for other in sorted(group, key=lambda each: -priority(each)):
            attempt = bare.plus([other])
            if refusal(pod, attempt, snapshot.replaced(attempt)) is None:
                bare = attempt
            else:
                victims.append(other)
                violations += other in protected
    return Candidate(info.name, tuple(victims), violations) if victims else None


def _split_by_budget(pods: list[Object], budgets: list[Object]) -> tuple[list[Object], list[Object]]:
    left = {meta(each)["uid"]: (each.get("status") or {}).get("disruptionsAllowed", 0) for each in budgets}
    protected, free = [], []
    for pod in pods:
        hit = [
            meta(each)["uid"]
            for each in budgets
            if meta(each)["namespace"] == meta(pod)["namespace"]
            and selects(each["spec"].get("selector"), meta(pod).get("labels"))
        ]
        if any(left[budget] <= 0 for budget in hit):
            protected.append(pod)
        else:
            free.append(pod)
        for budget in hit:
            left[budget] -= 1
    return protected, free
