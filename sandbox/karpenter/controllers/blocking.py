"""Why a node may not be disrupted now, and which pods cannot leave it.

After kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/state/statenode.go`` and ``pkg/utils/pdb/pdb.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sandbox.karpenter.conditions import condition, is_true
from sandbox.karpenter.context import Context
from sandbox.karpenter.objects import (
    DO_NOT_DISRUPT,
    active,
    annotations_of,
    deleting,
    drainable,
    labels,
    name,
    protected,
    reschedulable,
    selects,
)

Object = dict[str, Any]


def node_complaint(context: Context, node: Object, claim: Object) -> str | None:
    """What forbids every voluntary disruption (``ValidateNodeDisruptable``).

    Once a node is registered its own annotation counts, not the claim's.
    """
    if not is_true(claim, "Initialized"):
        return "node isn't initialized"
    if deleting(node) or deleting(claim):
        return "node is deleting or marked for deletion"
    if context.nominated(name(claim)):
        return "node is nominated for a pending pod"
    if annotations_of(node).get(DO_NOT_DISRUPT) == "true":
        return f'disruption is blocked through the "{DO_NOT_DISRUPT}" annotation'
    return None


def pod_complaint(context: Context, node: Object) -> str | None:
    """What pods forbid (``ValidatePodsDisruptable``): first their annotations, then PodDisruptionBudgets.

    Drift passes over it when the claim has a terminationGracePeriod (``disruption/types.go``, NewCandidate).
    """
    speed = context.clock.speed
    pods = list(context.state.pods_on(name(node)))
    for pod in pods:
        if active(pod) and protected(pod, speed):
            where = f"{pod['metadata']['namespace']}/{name(pod)}"
            return f'pod has "{DO_NOT_DISRUPT}" annotation (Pod={where})'
    for pod in pods:
        found = blocking_budgets(pod, context.pdbs.items(pod["metadata"]["namespace"]), speed, _allows_none)
        shown = " ".join(f"{each['metadata']['namespace']}/{name(each)}" for each in found)
        if len(found) > 1:
            return f"eviction does not support multiple PDBs (PodDisruptionBudget(s)=[{shown}])"
        if found:
            return f"pdb prevents pod evictions (PodDisruptionBudget=[{shown}])"
    return None


def movable(context: Context, pod: Object) -> bool:
    """Whether room is sought for a pod of a node that goes (``IsCurrentlyReschedulable``): not while it is protected,
    or while a PodDisruptionBudget can never allow its eviction."""
    speed = context.clock.speed
    if not reschedulable(pod) or (active(pod) and protected(pod, speed)):
        return False
    return not blocking_budgets(pod, context.pdbs.items(pod["metadata"]["namespace"]), speed, _never_allows_any)


def blocking_budgets(
    pod: Object, budgets: Iterable[Object], speed: float, blocks: Callable[[Object], bool]
) -> list[Object]:
    """The PodDisruptionBudgets that keep a pod: the one that blocks, or all if there are several.

    A pod whose eviction Karpenter does not request (``IsEvictable``) is kept by none.
    """
    if not active(pod) or not drainable(pod) or protected(pod, speed):
        return []
    matching = [each for each in budgets if selects(each["spec"].get("selector"), labels(pod))]
    if len(matching) > 1:
        return matching
    for budget in matching:
        unhealthy = condition(pod, "Ready").get("status") == "False"
        if budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow" and unhealthy:
            return []
        if blocks(budget):
            return [budget]
    return []


def _allows_none(budget: Object) -> bool:
    return not (budget.get("status") or {}).get("disruptionsAllowed")


def _never_allows_any(budget: Object) -> bool:
    spec = budget["spec"]
    return spec.get("maxUnavailable") in (0, "0%") or spec.get("minAvailable") == "100%"
