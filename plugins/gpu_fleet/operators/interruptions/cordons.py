"""Cordons of a drain by hand: taking nodes out of service, giving them back, and leaving them to a person."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Conflict, NotFound, TransientError
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY, ANNOTATION_DRAINED_BY
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.core.nodes.left_behind import cordoned_by_another
from gpu_fleet.core.nodes.replacement import cordon, cordoned_by
from gpu_fleet.operators.base import DRAIN_TASK_ID, FleetOperator, run_name, task_states
from gpu_fleet.operators.draining.executor import Executor
from gpu_fleet.operators.interruptions.fleet_nodes import fleet_nodes
from gpu_fleet.operators.interruptions.manual_plan import planned_nodes
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, GIVES_BACK

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

Node = Mapping[str, Any]
#: Attempts at one node that changes meanwhile: kubelets write to their nodes all the time.
SWAPS = 5
#: XCom key of the drain: pods have been asked to go, so the cordons are no longer taken back by themselves.
EVICTING = "evicting"


def cordon_body(node: Node, run: str) -> dict[str, Any] | None:
    """The merge patch that makes a node this run's; ``None`` if there is nothing to write.

    A cordon of a person, or for an interruption, stays theirs. One of a run that is over is taken over: the release of
    the cluster lock would take it back.
    """
    if cordoned_by_another(node, run) and (node.get("spec") or {}).get("unschedulable"):
        return _patch(node, {ANNOTATION_CORDONED_BY: run})
    return cordon(node, run)


def uncordon_body(node: Node, run: str) -> dict[str, Any] | None:
    """The merge patch that takes this run's cordon back; ``None`` where it has none, or has lost it to an
    interruption."""
    if not cordoned_by(node, run) or deleting(node):
        return None
    return {**_patch(node, {ANNOTATION_CORDONED_BY: None}), "spec": {"unschedulable": None}}


def leave_body(node: Node, run: str) -> dict[str, Any] | None:
    """The merge patch that makes this run's cordon that of a person, which no run takes back."""
    if not cordoned_by(node, run):
        return None
    return _patch(node, {ANNOTATION_CORDONED_BY: None, ANNOTATION_DRAINED_BY: run})


def _patch(node: Node, annotations: Mapping[str, str | None]) -> dict[str, Any]:
    version = (node.get("metadata") or {}).get("resourceVersion")
    return {"metadata": {"resourceVersion": version, "annotations": dict(annotations)}}


def write(kube: KubeClient, nodes: Iterable[Node], body: Callable[[Node], dict[str, Any] | None]) -> list[str]:
    """Patch nodes side by side, each in the version that was looked at.

    :returns: the names of those that were written to.
    :raises TransientError: a node changed again and again.
    """

    def one(node: Node) -> str:
        now: Node | None = node
        name, uid = str(node["metadata"]["name"]), node["metadata"]["uid"]
        for _ in range(SWAPS):
            if now is None or now["metadata"]["uid"] != uid:
                return ""
            wanted = body(now)
            if wanted is None:
                return ""
            try:
                kube.patch(ObjectRef(NODE, name), wanted)
            except NotFound:
                return ""
            except Conflict:
                now = kube.get(ObjectRef(NODE, name))
                continue
            return name
        raise TransientError(f"node {name} changed {SWAPS} times while it was being written to", reason="NodeChanged")

    with Executor() as executor:
        return sorted(name for name in executor.each(one, nodes) if name)


class CordonNodesOperator(FleetOperator):
    """Cordons the nodes of the plan in the run's name, before their replacements are requested and before their drain.

    :param plan_task_id: the task whose plan is carried out.
    :returns: ``{"cordoned": [names], "already": [names]}``; ``already`` are those that a person, an interruption or an
        earlier try has cordoned.
    """

    preconditions = CHANGES_CLUSTER
    ui_color = "#fdf0e3"

    def __init__(self, *, plan_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_task_id = plan_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, list[str]]:
        from gpu_fleet.operators.capacity.removal import await_scheduler

        run, planned = run_name(context), planned_nodes(context, self.plan_task_id)
        found = fleet_nodes(self.kube, self.spec)
        nodes = found.objects_of(found.with_uids(set(planned)))
        cordoned = write(self.kube, nodes, lambda node: cordon_body(node, run))
        for name in cordoned:
            self.log.info("cordoned node %s", name)
        if cordoned:
            # A pod that was being scheduled there is bound by then, and the drain sees it.
            await_scheduler()
        names = {str(node["metadata"]["name"]) for node in nodes}
        return {"cordoned": cordoned, "already": sorted(names - set(cordoned))}


class UndoCordonsOperator(FleetOperator):
    """Takes the run's cordons back if it ends before it has evicted a pod, or if a person ends it.

    It runs whatever happened before, as a teardown task (``phases/common.py``). After the first eviction a drain that
    fails leaves its nodes cordoned, so that it can be continued; the next run that holds the cluster lock takes the
    cordons back.

    A task that was waiting or running when a person ended the run leaves the ones after it *skipped*; after a failure
    they are *upstream_failed* (apache-airflow 3.3.2 ``airflow/api/common/mark_tasks.py``).

    :param last: id of the task after which nothing is left to undo.
    :returns: ``{"uncordoned": [names], "why"}``.
    """

    preconditions = GIVES_BACK

    def __init__(self, *, last: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last = last

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        run = run_name(context)
        state = task_states(context, [self.last]).get(self.last)
        if state == "success":
            return {"uncordoned": [], "why": "the drain has come to its end"}
        evicting = bool(context["ti"].xcom_pull(task_ids=DRAIN_TASK_ID, key=EVICTING))
        found = fleet_nodes(self.kube, self.spec)
        mine: Sequence[Node] = [node for node in found.objects if cordoned_by(node, run)]
        if not mine:
            return {"uncordoned": [], "why": "this run has cordoned no node that is still there"}
        if evicting and state != "skipped":
            names = ", ".join(str(node["metadata"]["name"]) for node in mine)
            self.log.warning(
                "pods have been evicted: %s stay cordoned, until the drain is continued (clear %s) or the next run of "
                "this cluster takes the cordons back",
                *(names, DRAIN_TASK_ID),
            )
            return {"uncordoned": [], "why": "pods have been evicted"}
        freed = write(self.kube, mine, lambda node: uncordon_body(node, run))
        for name in freed:
            self.log.info("uncordoned node %s", name)
        why = "a person ended the run" if state == "skipped" else "the run ended before a pod was evicted"
        return {"uncordoned": freed, "why": why}
