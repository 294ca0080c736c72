"""Looks for the nodes that are interrupted, and takes those that no other run handles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Conflict, GpuFleetError, NotFound
from gpu_fleet.core.interruptions.handling import Handled, NodePlan, Plan, cause_of, plan_nodes
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_HANDLED
from gpu_fleet.core.lock import Holder
from gpu_fleet.operators.interruptions.fleet_nodes import fleet_nodes
from gpu_fleet.operators.locking import run_state

if TYPE_CHECKING:
    from gpu_fleet.core.interruptions.event import Case
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

#: Nodes that are written to at the same time.
AT_ONCE = 16
#: Attempts at one node that changes under our hands.
SWAPS = 5

#: States of runs that are over (Airflow 3.3.2 ``airflow/utils/state.py``, ``DagRunState``).
_OVER = frozenset({"success", "failed"})


class RunsOver:
    """Whether a run is over, asked of Airflow once for each; unknown ones count as over."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._context = context
        self._known: dict[str, bool] = {}

    def __call__(self, run: str) -> bool:
        if run not in self._known:
            dag_id, _, run_id = run.partition("/")
            state = run_state(self._context, Holder("", dag_id, run_id, ""))
            self._known[run] = state is None or state in _OVER
        return self._known[run]


def look(
    kube: KubeClient,
    spec: ClusterSpec,
    cases: Mapping[str, Case],
    *,
    run: str,
    now: float,
    is_over: Callable[[str], bool],
    reported: Callable[[], Mapping[str, str]] = dict,
) -> Plan:
    """What this run does about each interrupted node; see :func:`plan_nodes`."""
    found = fleet_nodes(kube, spec)
    return plan_nodes(found.objects, found.claims, cases, spec, run=run, now=now, is_over=is_over, reported=reported)


def claim(kube: KubeClient, plans: Iterable[NodePlan], run: str) -> tuple[list[NodePlan], dict[str, str]]:
    """Take the nodes for this run, and give those the first aid that they have not had.

    :returns: those that are ours now, as they are; and node -> why it is not, for the others.
    """
    found = _each(plans, lambda plan: _claim(kube, plan, run))
    mine = [plan for plan, _ in found if plan is not None]
    return mine, {name: why for plan, (name, why) in found if plan is None}


def finish(kube: KubeClient, plans: Iterable[NodePlan], run: str) -> dict[str, str]:
    """Note on the nodes that are still there that this run has done what it could.

    :returns: node -> why that could not be noted; the next run then looks at it once more, which is harmless.
    """

    def work(plan: NodePlan) -> tuple[str, str]:
        body = {
            "metadata": {
                "uid": plan.node.uid,
                "annotations": {
                    ANNOTATION_HANDLED: Handled(run, cause_of(plan.notice), done=True, way=plan.way).text()
                },
            }
        }
        try:
            kube.patch(ObjectRef(NODE, plan.name), body)
        except (NotFound, Conflict):
            return plan.name, ""  # gone, or another instance has its name
        except GpuFleetError as error:
            return plan.name, error.message
        return plan.name, ""

    return {name: why for name, why in _each(plans, work) if why}


def _claim(kube: KubeClient, plan: NodePlan, run: str) -> tuple[NodePlan | None, tuple[str, str]]:
    node: Mapping[str, Any] | None = plan.object
    handled = Handled(run, cause_of(plan.notice), way=plan.way).text()
    for _ in range(SWAPS):
        if node is None or node["metadata"].get("uid") != plan.node.uid:
            return None, (plan.name, "the node is gone")
        annotations = {ANNOTATION_HANDLED: handled, **(plan.aid.annotations if plan.aid is not None else {})}
        body: dict[str, Any] = {
            "metadata": {"resourceVersion": node["metadata"].get("resourceVersion"), "annotations": annotations}
        }
        if plan.aid is not None and plan.aid.cordon:
            body["spec"] = {"unschedulable": True}
        try:
            now = kube.patch(ObjectRef(NODE, plan.name), body)
            return replace(plan, object=now, aid=None), (plan.name, "")
        except NotFound:
            return None, (plan.name, "the node is gone")
        except Conflict:
            node = kube.get(ObjectRef(NODE, plan.name))
            other = Handled.of(node) if node is not None else None
            if other is not None and other.run != run and other.cause == cause_of(plan.notice):
                return None, (plan.name, f"run {other.run} has taken it just now")
    return None, (plan.name, f"the node changed {SWAPS} times while it was being taken")


def _each(plans: Iterable[NodePlan], work: Callable[[NodePlan], Any]) -> list[Any]:
    listed = list(plans)
    if not listed:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(listed)), thread_name_prefix="gpu-fleet-interruptions") as pool:
        return list(pool.map(work, listed))
