"""What the operators that act on one pool share: the pool, its hardware, the tasks before them, and how they report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.aws.hardware import Hardware
from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL, run_label
from gpu_fleet.operators.base import FleetOperator, Preconditions, tasks_before
from gpu_fleet.operators.preconditions import SelectedPool

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool

#: XCom key under which a failed wait leaves ``{"reason", "message"}``; reasons that blame the device plugin begin with
#: ``core.device_plugin.causes.PLUGIN_CAUSE``.
FAILURE = "failure"


class PoolOperator(FleetOperator):
    """Base of the operators that act on one pool of the cluster.

    :param node_pool: name of the pool (``pool`` is Airflow's word for something else).
    """

    preconditions: Preconditions = (SelectedPool(),)

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


def upstream_tasks(operator: PoolOperator, kind: type[PoolOperator]) -> list[str]:
    """The ids of the tasks of a kind, for the same pool, upstream of a task; in the order of the DAG."""
    return tasks_before(operator, lambda task: isinstance(task, kind) and task.node_pool == operator.node_pool)


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
    """The pool's hardware as EC2 describes it: the one source of physical GPUs for gates, placeholders and overlays.

    :raises SpecError: for instance types that EC2 does not know, without NVIDIA GPU, or with different numbers of GPUs.
    """
    from gpu_fleet.hooks.cluster import pool_facts

    return pool_facts.hardware(spec, pool)
