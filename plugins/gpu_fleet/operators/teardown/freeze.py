"""Freezes the NodePools of a teardown, and takes the freeze back if the teardown ends before it evicts a pod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import NotFound, PermanentError
from gpu_fleet.core.kubernetes.kinds import JOB, NODE, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    COMPONENT_HEADROOM,
    LABEL_CLUSTER,
    LABEL_COMPONENT,
    LABEL_POOL,
    SYSTEM_NAMESPACE,
)
from gpu_fleet.core.kubernetes.objects import labels_of, name_of
from gpu_fleet.core.nodes.freeze import evicted_for, frozen, may_thaw, needs_freeze, thawed, unfrozen
from gpu_fleet.core.nodes.replacement import cordoned_by
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.scope import doomed_pools, pool_of
from gpu_fleet.operators.base import FleetOperator, run_name, task_states
from gpu_fleet.operators.nodes import take_back_own_cordons
from gpu_fleet.operators.pods import delete_job
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, GIVES_BACK

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

#: Why there is nothing to take back after a freeze that never began.
NOTHING_FROZEN = "nothing was frozen"


def going_pools(kube: KubeClient, spec: ClusterSpec) -> list[dict[str, Any]]:
    """The NodePools that a teardown removes."""
    pools = kube.list(NODE_POOL)
    names = set(doomed_pools(spec, pools))
    return [pool for pool in pools if pool["metadata"]["name"] in names]


def require_freeze(kube: KubeClient, spec: ClusterSpec) -> None:
    """
    :raises PermanentError: ``NotFrozen`` if a NodePool of the teardown would buy nodes for evicted pods.
    """
    if open_pools := unfrozen(going_pools(kube, spec)):
        raise PermanentError(
            f"NodePools {', '.join(open_pools)} are not frozen, so evicted pods would buy new nodes (a failed drain or "
            "a person may have taken the freeze back); clear teardown.plan_again and what follows it",
            reason="NotFrozen",
        )


def is_marked(pools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every pool's annotation says that pods are evicted from its nodes."""
    return bool(pools) and all(evicted_for(pool) is not None for pool in pools)


def mark(kube: KubeClient, pools: Sequence[Mapping[str, Any]], run: str) -> None:
    """Record that pods are evicted before the first eviction: nothing else survives a killed task."""
    for pool in pools:
        if not pool["metadata"].get("deletionTimestamp"):
            kube.apply(frozen(pool, run, evicting=True), force=True)


class FreezePoolsOperator(FleetOperator):
    """Keeps Karpenter from launching nodes in the NodePools of a teardown: ``limits.nodes`` 0, the old limits in an
    annotation.

    Otherwise every evicted pod would buy a new node. Applying the pool again takes the freeze back. Our own pods that
    still wait for a node of these pools are deleted, too: a failed run may have left them, and no drain finds them.

    :returns: ``{"frozen": [names], "already": [names], "pods": [names]}``.
    """

    preconditions = CHANGES_CLUSTER

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        run = run_name(context)
        done: dict[str, list[str]] = {"frozen": [], "already": [], "pods": []}
        for pool in going_pools(self.kube, self.spec):
            name = pool["metadata"]["name"]
            if pool["metadata"].get("deletionTimestamp") or not needs_freeze(pool, run):
                done["already"].append(name)
                continue
            # force: a limit of another field manager must not keep the pool open during an approved teardown.
            self.kube.apply(frozen(pool, run), force=True)
            self.log.info("froze NodePool %s: Karpenter launches no more nodes for it", name)
            done["frozen"].append(name)
        kept = {pool.name for pool in self.spec.node_pools if not pool.manage}
        self._delete_headroom(kept)
        done["pods"] = self._delete_waiting_pods(kept)
        return done

    def _delete_headroom(self, kept: set[str]) -> None:
        """Their Jobs would otherwise stay until their windows close."""
        mine = f"{LABEL_COMPONENT}={COMPONENT_HEADROOM},{LABEL_CLUSTER}={self.spec.name}"
        for job in self.kube.list(JOB, SYSTEM_NAMESPACE, label_selector=mine):
            if labels_of(job).get(LABEL_POOL) not in kept and delete_job(self.kube, name_of(job)):
                self.log.info("deleted Job %s: headroom of pool %s", name_of(job), labels_of(job)[LABEL_POOL])

    def _delete_waiting_pods(self, kept: set[str]) -> list[str]:
        names = []
        for pod in self.kube.list(POD, label_selector=f"{LABEL_CLUSTER}={self.spec.name},{LABEL_POOL}"):
            metadata = pod["metadata"]
            if metadata["labels"][LABEL_POOL] in kept or (pod.get("spec") or {}).get("nodeName"):
                continue
            ref = ObjectRef(POD, metadata["name"], metadata["namespace"])
            if self.kube.delete(ref, uid=metadata["uid"]):
                self.log.info("deleted %s: it waited for a node of pool %s", ref, metadata["labels"][LABEL_POOL])
                names.append(str(ref))
        return names


class UndoFreezeOperator(FleetOperator):
    """Takes freeze and cordons back after a failed drain, if no drain has evicted a pod.

    This includes what an earlier run left: this run's freeze has taken it over.

    It runs when all drains are over, whatever their state, also in a run that a person ends, and does nothing if all
    succeeded. As soon as one pod has been evicted everything stays as it is: an open pool would buy nodes for the
    evicted pods.

    If a person ends the run while a half-done freeze waits for its retry, the freeze is *skipped*, as is one that never
    began (apache-airflow 3.3.2 ``airflow/api/common/mark_tasks.py`` ``_set_dag_run_terminal_state``). A run that was
    not approved never took the cluster lock before the freeze; in one that did, the NodePools show whether it froze
    them.

    :param turn: id of the task that takes the cluster lock for the freeze.
    :param freeze: id of the task that freezes.
    :param drains: ids of the tasks that drain.
    :returns: ``{"undone": bool, "why", "thawed": [names], "uncordoned": [names]}``.
    """

    preconditions = GIVES_BACK

    def __init__(self, *, turn: str, freeze: str, drains: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.turn = turn
        self.freeze = freeze
        self.drains = list(drains)

    def execute(self, context: Mapping[str, Any]) -> Any:
        # Before the lock is checked: most runs end here, and some never had it.
        why = self._nothing_to_undo(context)
        return _nothing(why) if why else super().execute(context)

    def _states(self, context: Mapping[str, Any]) -> dict[str, str]:
        return task_states(context, [self.turn, self.freeze, *self.drains])

    def _nothing_to_undo(self, context: Mapping[str, Any]) -> str:
        states = self._states(context)
        froze = states.get(self.freeze)
        if froze == "skipped":
            # State and result: the result of an earlier pass remains after a new plan that is rejected.
            had_lock = states.get(self.turn) == "success" and context["ti"].xcom_pull(task_ids=self.turn)
            return "" if had_lock else NOTHING_FROZEN
        if froze not in ("success", "failed"):
            return NOTHING_FROZEN
        return "every drain succeeded" if all(states.get(name) == "success" for name in self.drains) else ""

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        ours, run = going_pools(self.kube, self.spec), run_name(context)
        if self._states(context).get(self.freeze) == "skipped" and not any(may_thaw(pool, run) for pool in ours):
            return _nothing(NOTHING_FROZEN)
        if any(pool["metadata"].get("deletionTimestamp") for pool in ours):
            return _nothing("NodePools are being deleted already")
        evicted = sorted(pool["metadata"]["name"] for pool in ours if evicted_for(pool) is not None)
        if evicted:
            self.log.warning(
                "pods have been evicted from pools %s: the NodePools stay frozen, or those pods would buy new nodes; "
                "continue the teardown, or run gpu_lifecycle.%s to open them again",
                ", ".join(evicted),
                self.spec.name,
            )
            return _nothing(f"pods have been evicted from {', '.join(evicted)}")
        return self._undo(run, ours)

    def _undo(self, run: str, pools: list[dict[str, Any]]) -> dict[str, Any]:
        opened = []
        for pool in pools:
            if may_thaw(pool, run):
                try:
                    self.kube.apply(thawed(pool), force=True)
                except NotFound:
                    continue
                opened.append(pool["metadata"]["name"])
                self.log.info("took the freeze of NodePool %s back: nothing was evicted", opened[-1])
        names = {pool["metadata"]["name"] for pool in pools}
        nodes = [node for node in self.kube.list(NODE) if pool_of(node) in names or cordoned_by(node, run)]
        # No pod was evicted since these pools were frozen, so the cordons of an earlier run are not needed, either.
        uncordoned = take_back_own_cordons(self.kube, nodes)
        for name in uncordoned:
            self.log.info("uncordoned node %s: nothing was evicted", name)
        why = "the teardown ended before anything was evicted"
        return {"undone": True, "why": why, "thawed": opened, "uncordoned": uncordoned}


def _nothing(why: str) -> dict[str, Any]:
    return {"undone": False, "why": why, "thawed": [], "uncordoned": []}
