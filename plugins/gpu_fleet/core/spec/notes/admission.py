"""Notes on gated pools: what keeps their nodes closed, and what that means for pods that wait.

Read in kubernetes-sigs/karpenter v1.14.1 pkg/controllers/state/statenode.go (``Taints``) and
pkg/controllers/nodeclaim/lifecycle (``initialization.go``; ``liveness.go`` ends at the registration).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.spec.capacity.admission import is_gated
from gpu_fleet.core.spec.problems import Note

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec


def gated_nodes_need_airflow(spec: ClusterSpec) -> Iterator[Note]:
    gated = [pool.name for pool in spec.node_pools if is_gated(spec, pool)]
    if gated:
        yield Note(
            "validation.admission",
            f"new nodes of {', '.join(gated)} take no user's pod before a run of this package has proven them: while "
            "Airflow is down, or gpu_admit is paused, they stay closed, and are paid for. By hand: kubectl taint node "
            "NODE gpu-fleet.io/unproven-",
        )


def closed_nodes_keep_pods_waiting(spec: ClusterSpec) -> Iterator[Note]:
    """Karpenter ignores the startup taint of a node that it has not initialized, so it expects the pod to run there."""
    gated = [pool.name for pool in spec.node_pools if is_gated(spec, pool)]
    if gated and spec.validation.on_failure.policy == "alert":
        yield Note(
            "validation.onFailure.policy",
            f"is alert: a node of {', '.join(gated)} that fails its proof stays closed, and Karpenter neither removes "
            "it nor buys another one for the pods that wait. With quarantine or replace it buys another one, within "
            "the budget",
        )
