"""What the Eviction API will say of a pod: the PodDisruptionBudgets that select it, and whether one forbids.

Source: kubernetes v1.35 ``pkg/registry/core/pod/storage/eviction.go``. A look ahead, for people: the budgets' statuses
change with every pod, and the API has the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.objects import deleting, is_true

Json = Mapping[str, Any]


def matches(selector: Json | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector selects the labels; ``None`` selects nothing, an empty one everything."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        key, operator, values = rule["key"], rule["operator"], rule.get("values") or []
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }.get(operator, False)
        if not holds:
            return False
    return True


def budgets_of(pod: Json, budgets: Iterable[Json]) -> list[Json]:
    """The budgets that select a pod."""
    metadata = pod["metadata"]
    labels = metadata.get("labels") or {}
    return [
        budget
        for budget in budgets
        if budget["metadata"].get("namespace") == metadata["namespace"]
        and matches((budget.get("spec") or {}).get("selector"), labels)
    ]


def versions_of(pod: Json, budgets: Iterable[Json]) -> dict[str, str]:
    """The ``resourceVersion`` of each budget that selects a pod, by name: they differ once anything has changed."""
    return {
        str(budget["metadata"]["name"]): str(budget["metadata"].get("resourceVersion", ""))
        for budget in budgets_of(pod, budgets)
    }


def forbidden_by(pod: Json, budgets: Iterable[Json]) -> str | None:
    """Which budget would refuse the pod's eviction now, and why; ``None`` if none would."""
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed", "Pending") or deleting(pod):
        return None
    found = budgets_of(pod, budgets)
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(sorted(str(budget["metadata"]["name"]) for budget in found))
        return f"PodDisruptionBudgets {names} select the same pod, which the Eviction API does not support"
    return _forbids(found[0], healthy=is_true(pod, "Ready"))


def _forbids(budget: Json, *, healthy: bool) -> str | None:
    name, spec, status = budget["metadata"]["name"], budget.get("spec") or {}, budget.get("status") or {}
    current, desired = int(status.get("currentHealthy") or 0), int(status.get("desiredHealthy") or 0)
    if not healthy and (spec.get("unhealthyPodEvictionPolicy") == "AlwaysAllow" or current >= desired > 0):
        return None
    if int(status.get("observedGeneration") or 0) < int(budget["metadata"].get("generation") or 0):
        return f"PodDisruptionBudget {name} has not been looked at by its controller yet"
    if int(status.get("disruptionsAllowed") or 0) <= 0:
        return f"PodDisruptionBudget {name} allows no disruption (it needs {desired} healthy pods and has {current})"
    return None
