"""Nodes that may be disrupted, and what moving their pods costs.

After kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/disruption/types.go`` and ``pkg/utils/disruption``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.karpenter.objects import annotations_of

Object = dict[str, Any]

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


@dataclass
class Candidate:
    """
    :ivar pods: those that would need another place (``IsReschedulable``).
    """

    node: Object
    claim: Object
    pool: Object
    pods: list[Object]

    @property
    def empty(self) -> bool:
        """No pod costs anything to move (``IsEmpty``): a node also counts as empty while pods of very low priority run
        on it, and emptiness evicts them."""
        return moving_cost(self.pods) <= 0


def moving_cost(pods: Iterable[Object]) -> float:
    return sum(max(0.0, eviction_cost(pod)) for pod in pods)


def eviction_cost(pod: Object) -> float:
    """1 for an ordinary pod, more or less by its deletion cost and its priority (``EvictionCost``)."""
    cost = 1.0
    with contextlib.suppress(ValueError):
        cost += float(annotations_of(pod).get(DELETION_COST, "0")) / 2**27
    cost += (pod["spec"].get("priority") or 0) / 2**25
    return max(-10.0, min(10.0, cost))
