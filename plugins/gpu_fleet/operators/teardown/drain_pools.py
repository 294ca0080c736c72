"""Which nodes a teardown drains: those of each pool of the file, and those of pools that only the cluster still has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.teardown.drain import remaining_nodes
from gpu_fleet.core.teardown.karpenter import Way
from gpu_fleet.operators.teardown.approved import approved_plan
from gpu_fleet.operators.teardown.drain import DrainOperator


class DrainPoolOperator(DrainOperator):
    """Drains the nodes of a pool; skips a pool with ``manage: false``.

    :param node_pool: name of the pool.
    """

    template_fields = ("node_pool",)

    def __init__(self, *, node_pool: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.node_pool = node_pool

    @property
    def subject(self) -> str:
        return self.node_pool

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        if not self.spec.pool(self.node_pool).manage:
            return self._skip("manage: false")
        return super().act(context)

    def _nodes(self) -> list[dict[str, Any]]:
        return self.kube.list(NODE, label_selector=f"{LABEL_NODE_POOL}={self.node_pool}")


class DrainRemovedPoolsOperator(DrainOperator):
    """Drains the nodes of pools that the teardown removes although the file no longer has them.

    The tasks of a run are fixed when the DAG is parsed, and only the cluster knows which of these pools are left.

    :param drained: names of the pools with a drain of their own.
    :param plan_task_id: task whose plan is carried out. It decides whether this is an emergency: a Karpenter that
        restarts at this moment is not ready either, and the plan has waited for it.
    """

    template_fields = ("drained",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"drained": "json"}
    subject = "removed-pools"

    #: Whether the teardown continues without Karpenter.
    emergency = False

    def __init__(self, *, drained: Sequence[str], plan_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drained = drained
        self.plan_task_id = plan_task_id

    def prepare(self, context: Mapping[str, Any]) -> None:
        super().prepare(context)
        made = approved_plan(context, self.plan_task_id)
        self.emergency = (made.get("plan") or {}).get("way") == Way.EMERGENCY.value

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        if not self._nodes():
            return self._skip("no node of a pool that the file no longer has")
        return super().act(context)

    def _nodes(self) -> list[dict[str, Any]]:
        nodes = self.kube.list(NODE, label_selector=LABEL_NODE_POOL)
        pools = self.kube.list(NODE_POOL)
        names = remaining_nodes(self.spec, nodes, pools, self.drained, emergency=self.emergency)
        return [node for node in nodes if node["metadata"]["name"] in names]
