"""What the operators that act on one pool share: the pool, its hardware, its protection, and how they report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import GpuFleetError, NotFound
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_DO_NOT_DISRUPT,
    ANNOTATION_PROTECTED_BY,
    LABEL_NODE_POOL,
    run_label,
)
from gpu_fleet.operators.base import FleetOperator

if TYPE_CHECKING:
    from gpu_fleet.core.aws.physical import Hardware
    from gpu_fleet.core.kubernetes.objects import PoolNode
    from gpu_fleet.core.spec import ClusterSpec, NodePool
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

#: XCom key under which a failed wait leaves ``{"reason", "message"}``; reasons that blame the device plugin begin with
#: ``core.capacity_plugin.PLUGIN_CAUSE``.
FAILURE = "failure"


class PoolOperator(FleetOperator):
    """Base of the operators that act on one pool of the cluster.

    :param node_pool: name of the pool (``pool`` is Airflow's word for something else).
    """

    skips_unselected_pools = True

    def __init__(self, *, node_pool: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.node_pool = node_pool

    @property
    def this_pool(self) -> NodePool:
        return self.spec.pool(self.node_pool)

    def of_pool(self) -> str:
        """Label selector of the pool's Nodes and NodeClaims."""
        return f"{LABEL_NODE_POOL}={self.node_pool}"

    def run_label(self, context: Mapping[str, Any]) -> str:
        ti = context["ti"]
        return run_label(ti.dag_id, ti.run_id)


class reported_failure:
    """Leaves the reason of a failed wait in the XCom ``failure``, where other tasks can read it."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._context = context

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, GpuFleetError):
            self._context["ti"].xcom_push(FAILURE, {"reason": error.reason, "message": error.message[:2000]})


def hardware(spec: ClusterSpec, pool: NodePool) -> Hardware:
    """The pool's physical GPUs, asked of EC2.

    :raises SpecError: instance types that EC2 does not know, without NVIDIA GPU, or with different numbers of GPUs.
    """
    from gpu_fleet.hooks.cluster import pool_facts

    return pool_facts.hardware(spec, pool)


def protect_nodes(kube: KubeClient, nodes: Iterable[PoolNode], run: str) -> list[str]:
    """Keep Karpenter from removing nodes; returns the names of those that this run now protects.

    Nodes that somebody else protects already are left as they are, and stay so when ours is taken back.
    """
    protected = []
    for node in nodes:
        if ANNOTATION_DO_NOT_DISRUPT in node.annotations and ANNOTATION_PROTECTED_BY not in node.annotations:
            continue
        if node.annotations.get(ANNOTATION_PROTECTED_BY) != run:
            annotations = {ANNOTATION_DO_NOT_DISRUPT: "true", ANNOTATION_PROTECTED_BY: run}
            try:
                kube.patch(ObjectRef(NODE, node.name), {"metadata": {"annotations": annotations}})
            except NotFound:
                continue
        protected.append(node.name)
    return protected
