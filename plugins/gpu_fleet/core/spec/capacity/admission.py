"""When a new node takes users' pods: at once, or only after its GPUs are proven."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gpu_fleet.core.kubernetes.names import TAINT_UNPROVEN
from gpu_fleet.core.spec.problems import Problem
from gpu_fleet.core.spec.types.durations import Seconds

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec
    from gpu_fleet.core.spec.pools import NodePool

#: ``open``: a node takes pods as soon as it is Ready. ``gated``: only after it has passed a proof.
Admission = Literal["open", "gated"]
#: What happens to a node that could not be proven in time: admit it and say so, or keep pods away from it.
Unproven = Literal["withWarning", "keepAway"]


def positive(value: Seconds) -> Seconds:
    """
    :raises ValueError: for a time box without time.
    """
    if value <= 0:
        raise ValueError("must be longer than 0s; write for example 20m")
    return value


def is_gated(spec: ClusterSpec, pool: NodePool) -> bool:
    """Whether a pool's new nodes carry our startup taint: by the pool's own ``admission``, else the cluster's.

    The template of a NodePool that belongs to others is not ours to change.
    """
    return pool.manage and (pool.admission or spec.validation.admission) == "gated"


def gates_only_own_pools(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        if pool.admission == "gated" and not pool.manage:
            yield Problem(
                f"nodePools[{index}].admission",
                f"pool {pool.name} has manage: false, so its NodePool, and its startupTaints, belong to others",
                "remove admission, or set manage: true",
            )


def gate_is_no_taint(spec: ClusterSpec) -> Iterator[Problem]:
    """A pod has to tolerate a NodePool's ``taints`` for Karpenter to buy a node for it, and a node whose taint is in
    neither list is bought again and again (aws/karpenter-provider-aws#6355).
    """
    for index, pool in enumerate(spec.node_pools):
        if any(taint.key == TAINT_UNPROVEN for taint in pool.taints):
            yield Problem(
                f"nodePools[{index}].taints",
                f"the taint {TAINT_UNPROVEN} of pool {pool.name} would never be removed, and keep every pod away",
                "remove it and write admission: gated",
            )
