"""Replaces drifted nodes that nobody uses, once what replaces them has been proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity.placeholders import counts_as_capacity
from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, ObjectRef
from gpu_fleet.core.nodes import replacement as rules
from gpu_fleet.core.nodes.replacement import Left, Mode, Replacement, Why
from gpu_fleet.operators.base import attempt, run_name
from gpu_fleet.operators.capacity import removal
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.pool import PoolOperator
from gpu_fleet.operators.validation.nodes import protected_nodes, upstream_tasks
from gpu_fleet.operators.validation.probes import REPORT, RunProbesOperator

if TYPE_CHECKING:
    from gpu_fleet.core.kubernetes.objects import PoolNode
    from gpu_fleet.core.verdict import Verdict

#: The run's Param.
PARAM = "replaceDrifted"
#: XCom and task-state key of what a run means to replace.
REPLACEMENT = "replacement"
#: Task-state key: NodeClaims whose deletion was asked for, noted before it is done.
DELETED = "deleted"


def mode_of(context: Mapping[str, Any]) -> Mode:
    """The run's Param; DAGs without it replace nothing."""
    return Mode(context["params"].get(PARAM) or Mode.NONE)


def plan_replacement(operator: PoolOperator, context: Mapping[str, Any]) -> Replacement:
    """What this run replaces in the pool; decided once, also if the task is tried again."""
    mode, store = mode_of(context), context["task_state_store"]
    if mode is Mode.NONE:
        return Replacement()
    kept = store.get(REPLACEMENT)
    if isinstance(kept, Mapping) and kept.get("attempt") == attempt(context):
        return Replacement.from_json(kept["plan"])
    from gpu_fleet.core.kubernetes.objects import pool_nodes
    from gpu_fleet.core.nodes.pool_template import PoolTemplate, of_template, older_nodes
    from gpu_fleet.hooks.cluster.drifted import look_at_nodes

    pool = operator.this_pool
    if not pool.manage:
        return Replacement()
    seen = look_at_nodes(operator.kube, [pool.name])
    nodes = operator.kube.list(NODE, label_selector=operator.of_pool())
    template = PoolTemplate.of(pool)
    older = older_nodes(template, pool.name, nodes, seen.claims)
    joined = {node["metadata"]["name"] for node in nodes}
    coming = [
        claim
        for claim in of_template(seen.claims, template)
        if (claim.get("status") or {}).get("nodeName") not in joined and not claim["metadata"].get("deletionTimestamp")
    ]
    found = rules.choose(
        mode,
        seen.drifted(),
        pool_nodes(nodes, pool.name),
        wanted=pool.wanted_nodes,
        at_once=pool.disruption.replace_at_once,
        cap=pool.node_limit,
        present=len(seen.claims),
        coming=len(coming),
        counts=lambda node: counts_as_capacity(node) and node.name not in older,
    )
    if found.chosen:
        operator.log.info(
            "pool %s: drifted nodes %s are to be replaced; %d node(s) more than wanted are asked for first",
            *(pool.name, ", ".join(found.chosen), found.surge),
        )
    for item in found.left:
        operator.log.warning("drifted node %s is left as it is: %s: %s", item.node, item.reason, item.message)
    store.set(REPLACEMENT, {"attempt": attempt(context), "plan": found.to_json()})
    return found


def planned_replacement(operator: PoolOperator, context: Mapping[str, Any]) -> Replacement:
    """What the pool's task that asked for capacity has decided to replace in this run."""
    for task_id in upstream_tasks(operator, RequestCapacityOperator):
        value = context["ti"].xcom_pull(task_ids=task_id, key=REPLACEMENT)
        if isinstance(value, Mapping):
            return Replacement.from_json(value)
    return Replacement()


def without_surge(operator: PoolOperator, error: GpuFleetError, args: Mapping[str, Any], surge: int) -> Verdict:
    """A node that was to come before a drifted one goes is no wanted one: without it nothing is replaced.

    :param error: how the wait for all of them ended, :param args: of the gate, with ``surge`` among the wanted nodes.
    :raises GpuFleetError: the error, if wanted nodes are missing, too.
    """
    if not surge:
        raise error
    from gpu_fleet.triggers.looking import look

    verdict = look("pool_capacity", {**args, "wanted": args["wanted"] - surge}, operator.access())
    if not verdict.ready:
        raise error
    operator.log.warning("the node that was to replace a drifted one did not come, so that stays: %s", error.message)
    return verdict


class ReplaceDriftedOperator(PoolOperator):
    """Deletes the NodeClaims of the drifted nodes that this run has replaced; Karpenter drains and terminates them.

    A node goes only if as many proven nodes as the spec wants stay without it, and if nobody uses it: it is cordoned,
    looked at again, and its NodeClaim deleted by UID. A node that is in use by then is uncordoned and named. Run again
    after a kill it goes on; a cordon that a dead run left is taken back by the next run that asks for capacity.

    :returns: ``{"mode", "replaced": [nodes], "left": [{"node", "reason", "message"}]}``.
    """

    changes_cluster = True
    only_in_turn = True
    ui_color = "#f6eefb"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        mode = mode_of(context)
        if mode is Mode.NONE:
            self.log.info("the Param %s is none: drifted nodes stay", PARAM)
            return {"mode": str(mode), "replaced": [], "left": []}
        plan = planned_replacement(self, context)
        done = self._done(context)
        go, left = self._removable(context, plan, done)
        self._take_back(context, left)
        replaced = sorted([*done, *self._remove(context, go, left)])
        for item in left:
            self.log.warning("drifted node %s is left as it is: %s: %s", item.node, item.reason, item.message)
        return {
            "mode": str(mode),
            "replaced": replaced,
            "left": [item.to_json() for item in (*plan.left, *left)],
        }

    def _removable(
        self, context: Mapping[str, Any], plan: Replacement, done: list[str]
    ) -> tuple[list[str], list[Left]]:
        todo = [name for name in plan.chosen if name not in done]
        if not todo:
            return [], []
        return rules.removable(todo, self._serving(context, plan) - set(done), self.this_pool.wanted_nodes)

    def _serving(self, context: Mapping[str, Any], plan: Replacement) -> set[str]:
        """Nodes that this run has proven, that are in use, or that stood before and were not in the sample."""
        from gpu_fleet.core.validation.report import Outcome, PoolReport

        values = [context["ti"].xcom_pull(task_ids=id_, key=REPORT) for id_ in upstream_tasks(self, RunProbesOperator)]
        reports = [PoolReport.from_json(value) for value in values if value]
        good = {Outcome.PASSED, Outcome.BUSY}
        judged = {node.node: node.outcome for report in reports for node in report.nodes}
        untested = set(protected_nodes(self, context).untested) & set(plan.standing)
        run = run_name(context)
        return {
            node.name
            for node, item in self._nodes()
            # A cordon of this very task does not end its service: whether it goes is what is asked here.
            if (counts_as_capacity(node) or (rules.cordoned_by(item, run) and not node.leaving))
            and (judged.get(node.name) in good or node.name in untested)
        }

    def _nodes(self) -> list[tuple[PoolNode, dict[str, Any]]]:
        from gpu_fleet.core.kubernetes.objects import PoolNode

        return [(PoolNode.of(item), item) for item in self.kube.list(NODE, label_selector=self.of_pool())]

    def _noted(self, context: Mapping[str, Any]) -> dict[str, str]:
        """Node -> UID of its NodeClaim, of those whose deletion this task has asked for, or was about to."""
        return dict(context["task_state_store"].get(DELETED) or {})

    def _claims(self) -> dict[str, dict[str, Any]]:
        claims = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        return {str((claim.get("status") or {}).get("nodeName")): claim for claim in claims}

    def _done(self, context: Mapping[str, Any]) -> list[str]:
        """The nodes that an earlier try of this task has replaced: their NodeClaims are gone, or going."""
        claims = self._claims()
        return [
            name
            for name, uid in self._noted(context).items()
            if (claim := claims.get(name)) is None
            or claim["metadata"]["uid"] != uid
            or claim["metadata"].get("deletionTimestamp")
        ]

    def _remove(self, context: Mapping[str, Any], go: list[str], left: list[Left]) -> list[str]:
        """Cordon, look again, delete; the names of the nodes whose NodeClaims were deleted."""
        noted, run, removed = self._noted(context), run_name(context), []
        cordoned = [name for name in go if self._cordoned(name, run, left)]
        if cordoned:
            removal.settle()
        claims = self._claims()
        for name in cordoned:
            claim = claims.get(name)
            if claim is None or claim["metadata"].get("deletionTimestamp"):
                left.append(Left(name, Why.GONE, "its NodeClaim is gone, or is being deleted already"))
                continue
            if users := removal.users(self.kube, claim):
                removal.uncordon(self.kube, name, run)
                left.append(Left(name, Why.IN_USE, users))
                continue
            noted[name] = str(claim["metadata"]["uid"])
            context["task_state_store"].set(DELETED, noted)
            self._delete(claim, name)
            removed.append(name)
        return removed

    def _delete(self, claim: Mapping[str, Any], name: str) -> None:
        metadata = claim["metadata"]
        if self.kube.delete(ObjectRef(NODE_CLAIM, metadata["name"]), uid=metadata["uid"]):
            self.log.warning("drifted node %s is replaced: NodeClaim %s deleted", name, metadata["name"])

    def _take_back(self, context: Mapping[str, Any], left: list[Left]) -> None:
        """The cordons of an earlier try of this task on nodes that are to stay after all."""
        for item in left:
            removal.uncordon(self.kube, item.node, run_name(context))

    def _cordoned(self, name: str, run: str, left: list[Left]) -> bool:
        if why := removal.cordon(self.kube, name, run):
            left.append(why)
        return why is None
