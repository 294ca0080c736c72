"""Disruption budgets as they are written to a NodePool: those of the spec and, by default, one that holds drift.

Karpenter takes the least of all budgets that are active now and match the reason; a budget without reasons matches
every reason, and without a schedule it is always active (kubernetes-sigs/karpenter v1.14.1 ``pkg/apis/v1/nodepool.go``,
GetAllowedDisruptionsByReason). A budget can therefore only restrict, and a default could not be undone by another
budget. So the default is left out as soon as one budget of the spec names ``Drifted``: its author has decided. A budget
without reasons is not such a decision: most files that have one were written without drift in mind.
"""

from __future__ import annotations

from typing import Final

from gpu_fleet.core.spec.pools import Budget, Disruption

DRIFTED: Final = "Drifted"
#: What Karpenter's CRD puts in place of an empty list.
_DEFAULT_SHARE = "10%"


def budgets_of(disruption: Disruption) -> tuple[Budget, ...]:
    """The budgets of a pool's NodePool: never empty."""
    mine = disruption.budgets or (Budget(nodes=_DEFAULT_SHARE),)
    if any(DRIFTED in budget.reasons for budget in mine):
        return mine
    return (*mine, Budget(nodes="0", reasons=(DRIFTED,)))


def allows_nothing(budget: Budget) -> bool:
    """Whether a budget, while it is active, allows no disruption at all: ``0`` or ``0%``."""
    return int(budget.nodes.rstrip("%")) == 0
