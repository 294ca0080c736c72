"""Removes drifted nodes that no pod uses, once the nodes that replace them have been proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.capacity.placeholders import counts_as_capacity
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, ObjectRef
from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.nodes import replacement as rules
from gpu_fleet.core.nodes.replacement import Left, Mode, Replacement, Why
from gpu_fleet.core.validation.report import Outcome, PoolReport
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.capacity import removal
from gpu_fleet.operators.capacity.replacement import PARAM, mode_of
from gpu_fleet.operators.capacity.request import planned_replacement
from gpu_fleet.operators.pool import PoolOperator, upstream_tasks
from gpu_fleet.operators.preconditions import GIVES_BACK, SelectedPool
from gpu_fleet.operators.validation.nodes import protected_nodes
from gpu_fleet.operators.validation.probes import REPORT, RunProbesOperator

#: Task-state key: NodeClaims whose deletion this task requests, noted before the request.
DELETED = "deleted"


class ReplaceDriftedOperator(PoolOperator):
    """Deletes the NodeClaims of the drifted nodes that this run has replaced; Karpenter drains and terminates them.

    A node is removed only if as many proven nodes as the spec wants stay without it, and if no pod uses it: it is
    cordoned, looked at again, and its NodeClaim deleted by UID. A node that is in use by then is uncordoned and named.
    A retry after a kill continues; a cordon that a dead run left is taken back by the next run that requests capacity.

    :returns: ``{"mode", "replaced": [nodes], "left": [{"node", "reason", "message"}]}``.
    """

    preconditions = (SelectedPool(), *GIVES_BACK)
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
            self.log.warning("drifted node %s stays: %s: %s", item.node, item.reason, item.message)
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
        """Nodes that this run has proven, that are in use, or that were there before and not in the sample."""
        values = [context["ti"].xcom_pull(task_ids=id_, key=REPORT) for id_ in upstream_tasks(self, RunProbesOperator)]
        reports = [PoolReport.from_json(value) for value in values if value]
        good = {Outcome.PASSED, Outcome.BUSY}
        judged = {node.node: node.outcome for report in reports for node in report.nodes}
        untested = set(protected_nodes(self, context).untested) & set(plan.existing)
        run = run_name(context)
        return {
            node.name
            for node, item in self._nodes()
            # A cordon by this very task does not end its service: whether it is removed is decided here.
            if (counts_as_capacity(node) or (rules.cordoned_by(item, run) and not node.leaving))
            and (judged.get(node.name) in good or node.name in untested)
        }

    def _nodes(self) -> list[tuple[PoolNode, dict[str, Any]]]:
        return [(PoolNode.of(item), item) for item in self.kube.list(NODE, label_selector=self.of_pool())]

    def _noted(self, context: Mapping[str, Any]) -> dict[str, str]:
        """Node -> UID of its NodeClaim, of those whose deletion this task has requested, or was about to request."""
        return dict(context["task_state_store"].get(DELETED) or {})

    def _claims(self) -> dict[str, dict[str, Any]]:
        claims = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        return {str((claim.get("status") or {}).get("nodeName")): claim for claim in claims}

    def _done(self, context: Mapping[str, Any]) -> list[str]:
        """The nodes that an earlier try of this task has replaced: their NodeClaims are gone, or being deleted."""
        claims = self._claims()
        return [
            name
            for name, uid in self._noted(context).items()
            if (claim := claims.get(name)) is None
            or claim["metadata"]["uid"] != uid
            or claim["metadata"].get("deletionTimestamp")
        ]

    def _remove(self, context: Mapping[str, Any], go: list[str], left: list[Left]) -> list[str]:
        """Cordon, look again, delete; returns the names of the nodes whose NodeClaims were deleted."""
        noted, run, removed = self._noted(context), run_name(context), []
        cordoned = [name for name in go if self._cordoned(name, run, left)]
        if cordoned:
            removal.await_scheduler()
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
            self.log.warning("drifted node %s is replaced: deleted NodeClaim %s", name, metadata["name"])

    def _take_back(self, context: Mapping[str, Any], left: list[Left]) -> None:
        """Take back the cordons of an earlier try of this task on nodes that are to stay after all."""
        for item in left:
            removal.uncordon(self.kube, item.node, run_name(context))

    def _cordoned(self, name: str, run: str, left: list[Left]) -> bool:
        if why := removal.cordon(self.kube, name, run):
            left.append(why)
        return why is None
