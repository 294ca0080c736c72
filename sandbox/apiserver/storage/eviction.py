"""May this pod be evicted? (kubernetes pkg/registry/core/pod/storage/eviction.go)

The budget's status is kept by the disruption controller; this side only spends ``disruptionsAllowed``.
"""

from __future__ import annotations

from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, clone, dig, now
from sandbox.apiserver.resources import Resource
from sandbox.apiserver.rules.selectors import label_selector
from sandbox.apiserver.storage.writer import Writer
from sandbox.apiserver.store import Record

_BUDGETS = ("policy", "poddisruptionbudgets")
_NOT_OBSERVED_RETRY = 10  # seconds
BLOCKED = "Cannot evict pod as it would violate the pod's disruption budget."
SEVERAL = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."


def _healthy(pod: Obj) -> bool:
    conditions = dig(pod, "status", "conditions") or []
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)


def _bypasses(pod: Obj) -> bool:
    """Pods that have finished, are not yet running, or are being deleted are evicted regardless of the budget."""
    phase = dig(pod, "status", "phase")
    return phase in ("Succeeded", "Failed", "Pending") or bool(pod["metadata"].get("deletionTimestamp"))


def check(writer: Writer, resource: Resource, namespace: str, name: str, *, dry_run: bool) -> None:
    """
    Let an eviction pass and count it against the budget.

    :raises ApiError: 404; 429 if the budget forbids it; 500 if several budgets select the pod.
    """
    pod = writer.get(resource, namespace, name).obj
    if _bypasses(pod):
        return
    labels = pod["metadata"].get("labels") or {}
    budgets = [
        record
        for record in writer.store.list(_BUDGETS, namespace)
        if label_selector(dig(record.obj, "spec", "selector"))(labels)
    ]
    if len(budgets) > 1:
        raise ApiError(500, "", SEVERAL)
    if not budgets:
        return
    budget = budgets[0]
    status = budget.obj.get("status") or {}
    if not _healthy(pod):
        always = dig(budget.obj, "spec", "unhealthyPodEvictionPolicy") == "AlwaysAllow"
        enough = status.get("currentHealthy", 0) >= status.get("desiredHealthy", 0) > 0
        if always or enough:
            return
    _spend(writer, budget, name, dry_run=dry_run)


def _spend(writer: Writer, budget: Record, pod: str, *, dry_run: bool) -> None:
    status = budget.obj.get("status") or {}
    if status.get("observedGeneration", 0) < budget.obj["metadata"].get("generation", 0):
        detail = f"The disruption budget {budget.name} is still being processed by the server."
        causes = [{"reason": "DisruptionBudget", "message": detail}]
        raise ApiError(
            429,
            "TooManyRequests",
            BLOCKED,
            details={"causes": causes, "retryAfterSeconds": _NOT_OBSERVED_RETRY},
            headers={"Retry-After": str(_NOT_OBSERVED_RETRY)},
        )
    if status.get("disruptionsAllowed", 0) <= 0:
        detail = (
            f"The disruption budget {budget.name} needs {status.get('desiredHealthy', 0)} healthy pods "
            f"and has {status.get('currentHealthy', 0)} currently"
        )
        causes = [{"reason": "DisruptionBudget", "message": detail}]
        raise ApiError(429, "TooManyRequests", BLOCKED, details={"causes": causes})
    if dry_run:
        return
    new = clone(budget.obj)
    new["status"]["disruptionsAllowed"] -= 1
    new["status"].setdefault("disruptedPods", {})[pod] = now()
    writer.store.put(_BUDGETS, new)
