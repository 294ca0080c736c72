"""Notes on what a spec lets Karpenter do to running jobs.

With the defaults Karpenter removes only nodes that are empty; each function below is about one way to change that.
The sources are kubernetes-sigs/karpenter v1.14.1 unless another is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.spec.budgets import DRIFTED, allows_nothing, budgets_of
from gpu_fleet.core.spec.problems import Note

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec
    from gpu_fleet.core.spec.pools import NodePool


def _managed(spec: ClusterSpec) -> Iterator[tuple[str, NodePool]]:
    for index, pool in enumerate(spec.node_pools):
        if pool.manage:
            yield f"nodePools[{index}]", pool


def drift_is_held(pool: NodePool) -> bool:
    """Whether Karpenter replaces no drifted node of the pool at any time."""
    return any(
        allows_nothing(budget) and budget.schedule is None and (not budget.reasons or DRIFTED in budget.reasons)
        for budget in budgets_of(pool.disruption)
    )


def period_overrides_protection(spec: ClusterSpec) -> Iterator[Note]:
    """``pkg/controllers/disruption/types.go`` (NewCandidate), ``pkg/controllers/node/termination/terminator``."""
    for where, pool in _managed(spec):
        period = pool.termination_grace_period
        if period is None:
            continue
        ways = [
            *([] if drift_is_held(pool) else ["drifts (any change of its template, AMI or control-plane version)"]),
            *([] if pool.expire_after.never else [f"reaches expireAfter {pool.expire_after}"]),
            "is deleted, by a teardown or by hand",
        ]
        yield Note(
            f"{where}.terminationGracePeriod",
            f"{period} after a node of pool {pool.name} {_either(ways)}, Karpenter deletes every pod on it, despite "
            "PodDisruptionBudgets and karpenter.sh/do-not-disrupt; write null to let running jobs end first",
        )


def drift_evicts_pods(spec: ClusterSpec) -> Iterator[Note]:
    """``pkg/controllers/disruption/drift.go``; the strictest of all budgets that match counts (``nodepool.go``)."""
    for where, pool in _managed(spec):
        if drift_is_held(pool):
            continue
        kept = (
            "only pods with karpenter.sh/do-not-disrupt and PodDisruptionBudgets that allow no disruption delay it"
            if pool.termination_grace_period is None
            else f"no annotation or PodDisruptionBudget protects them for longer than {pool.termination_grace_period}"
        )
        yield Note(
            f"{where}.disruption.budgets",
            f"Karpenter replaces drifted nodes of pool {pool.name} and evicts their pods, even while jobs run: "
            f"{kept}. A budget applies only while its schedule is active. Write {{nodes: '0', reasons: [Drifted]}}, or "
            "no budget for Drifted, so that drifted nodes are only reported",
        )


def expiry_evicts_pods(spec: ClusterSpec) -> Iterator[Note]:
    """``pkg/controllers/nodeclaim/expiration/controller.go``; ``pkg/utils/pod/scheduling.go`` (IsDrainable)."""
    for where, pool in _managed(spec):
        if pool.expire_after.never:
            continue
        then = (
            "pods with karpenter.sh/do-not-disrupt, or with a PodDisruptionBudget that allows no disruption, keep the "
            "tainted node, and its price, until they end; Karpenter does not wait for pods that tolerate every taint"
            if pool.termination_grace_period is None
            else f"{pool.termination_grace_period} later every pod is deleted, protected or not"
        )
        yield Note(
            f"{where}.expireAfter",
            f"at the age of {pool.expire_after} Karpenter taints a node of pool {pool.name} and evicts its pods, "
            f"whatever the disruption budgets say, and without a replacement first; {then}. Write Never to keep nodes",
        )


def consolidation_evicts_pods(spec: ClusterSpec) -> Iterator[Note]:
    """``pkg/controllers/disruption/consolidation.go``: pods of nodes in use are moved to fewer nodes."""
    for where, pool in _managed(spec):
        policy = pool.disruption.consolidation_policy
        if policy != "WhenEmpty" and not pool.disruption.consolidate_after.never:
            yield Note(
                f"{where}.disruption.consolidationPolicy",
                f"with {policy} Karpenter also evicts running pods of pool {pool.name} to save a node; only "
                "karpenter.sh/do-not-disrupt or a PodDisruptionBudget protects a job. WhenEmpty removes idle nodes",
            )


def repair_deletes_pods(spec: ClusterSpec) -> Iterator[Note]:
    """``pkg/controllers/node/health/controller.go`` sets the termination time to now."""
    gates = _at(spec.karpenter.settings, "featureGates") or _at(spec.karpenter.values, "settings", "featureGates")
    if spec.karpenter.manage and isinstance(gates, Mapping) and gates.get("nodeRepair") is True:
        yield Note(
            "karpenter.settings.featureGates.nodeRepair",
            "Karpenter deletes the pods of a node that stays unhealthy at once, despite PodDisruptionBudgets and "
            "karpenter.sh/do-not-disrupt, even where terminationGracePeriod is null",
        )


def _at(values: Any, *path: str) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _either(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])} or {ways[-1]}"
