"""Takes nodes that fail a revalidation out of service, as the spec allows, and back into it when they pass."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.objects import deleting, pool_nodes
from gpu_fleet.core.pools.quarantine import Quarantine, claim_of, quarantined, released, users_of
from gpu_fleet.core.pools.remediation import Left, Plan, Policy, Why, judgements, plan
from gpu_fleet.core.validation.report import PoolReport
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.capacity import removal
from gpu_fleet.operators.nodes import swap_node
from gpu_fleet.operators.pool import PoolOperator, upstream_tasks
from gpu_fleet.operators.preconditions import GIVES_BACK, SelectedPool
from gpu_fleet.operators.validation.probes import REPORT, SUMMARY, RunProbesOperator
from gpu_fleet.operators.validation.publish import REMEDIATION

#: Key in Airflow's task state store: what this run does to which node, recorded before it is done. It survives retries,
#: so that an interrupted try does not get a second budget.
ACTED = "acted"
QUARANTINE, REPLACE = "quarantine", "replace"


class RemediateNodesOperator(PoolOperator):
    """Quarantines, replaces and releases nodes of one pool according to the results of this run's probes.

    The rules are in ``core/pools/remediation.py``: only causes that lie in a node count, never more nodes than the
    budget, and never a defect of the whole pool. Nodes that this package quarantined are released under any policy. To
    be run whatever happened before (trigger rule ``all_done``), after all probes of the pool.

    :returns: and XCom ``remediation``: ``{"policy", "quarantined": [all nodes in quarantine now], "released": […],
        "replaced": […], "left": [{"node", "reason", "message"}]}``.
    """

    preconditions = (SelectedPool(), *GIVES_BACK)
    ui_color = "#f6eefb"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        policy = self.policy()
        found = self.kube.list(NODE, label_selector=self.of_pool())
        nodes = {node.name: node for node in pool_nodes(found, self.node_pool)}
        quarantines = {
            item["metadata"]["name"]: quarantine
            for item in found
            if item["metadata"]["name"] in nodes and (quarantine := Quarantine.of(item)) is not None
        }
        acted: dict[str, str] = dict(context["task_state_store"].get(ACTED) or {})
        todo = plan(
            policy,
            self.spec.validation.on_failure.budget,
            judgements(self._reports(context)),
            nodes,
            quarantines,
            spent={*acted, *self.spent(context, quarantines)},
            probes=self._probes(context),
        )
        self._quarantine(context, todo, acted, set(quarantines))
        for name in todo.release:
            swap_node(self.kube, name, released)
            self.log.info("node %s passed again: released from quarantine", name)
        left = [*todo.left, *self._replace(context, todo, acted)]
        replaced = sorted(name for name, action in acted.items() if action == REPLACE)
        out = {*quarantines, *(name for name, _ in todo.quarantine)} - {*todo.release, *replaced}
        for item in left:
            self.log.warning("node %s is left as it is: %s: %s", item.node, item.reason, item.message)
        outcome = {
            "policy": str(policy),
            "quarantined": sorted(out),
            "released": list(todo.release),
            "replaced": replaced,
            "left": [item.to_json() for item in left],
        }
        context["ti"].xcom_push(REMEDIATION, outcome)
        return outcome

    def policy(self) -> Policy:
        """What the spec allows."""
        return Policy(self.spec.validation.on_failure.policy)

    def spent(self, context: Mapping[str, Any], quarantines: Mapping[str, Quarantine]) -> set[str]:
        """The quarantined nodes that count against the budget: those of this run."""
        run = run_name(context)
        return {name for name, quarantine in quarantines.items() if quarantine.run == run}

    def _probes(self, context: Mapping[str, Any]) -> set[str]:
        """The pool's probes in this run, without those for which no node was left."""
        ti, dag = context["ti"], self.get_dag()
        tasks = {id_: dag.get_task(id_) for id_ in upstream_tasks(self, RunProbesOperator)} if dag else {}
        skipped = [id_ for id_ in tasks if (ti.xcom_pull(task_ids=id_, key=SUMMARY) or {}).get("outcome") == "Skipped"]
        return {task.probe for id_, task in tasks.items() if id_ not in skipped and isinstance(task, RunProbesOperator)}

    def _reports(self, context: Mapping[str, Any]) -> list[PoolReport]:
        ti = context["ti"]
        values = [ti.xcom_pull(task_ids=task, key=REPORT) for task in upstream_tasks(self, RunProbesOperator)]
        return [PoolReport.from_json(value) for value in values if value]

    def _quarantine(self, context: Mapping[str, Any], todo: Plan, acted: dict[str, str], before: set[str]) -> None:
        run, at = run_name(context), datetime.now(UTC).isoformat(timespec="seconds")
        cordoned = False
        for name, found in todo.quarantine:
            if name not in before and name not in acted:
                self._note(context, acted, name, QUARANTINE)
            if swap_node(self.kube, name, partial(quarantined, found=found, run=run, at=at)):
                self.log.warning("node %s is quarantined: %s: %s", name, found.reason, found.message)
                cordoned = True
        if cordoned and todo.replace:
            removal.await_scheduler()

    def _replace(self, context: Mapping[str, Any], todo: Plan, acted: dict[str, str]) -> list[Left]:
        """Delete the NodeClaims of unused nodes; they are quarantined by now, so they get no new pods."""
        if not todo.replace:
            return []
        left = []
        claims = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        for name in todo.replace:
            claim = claim_of(claims, name)
            if acted.get(name) == REPLACE and (claim is None or deleting(claim)):
                continue  # an interrupted try of this task has done it
            users = users_of(self.kube.list(POD, field_selector=f"spec.nodeName={name}"), name)
            if users:
                more = f" and {len(users) - 3} more" if len(users) > 3 else ""
                words = f"quarantined until these have ended: {', '.join(users[:3])}{more}"
                left.append(Left(name, Why.IN_USE, words))
            elif claim is None:
                left.append(Left(name, Why.NO_NODE_CLAIM, "quarantined; no NodeClaim has this node: delete it by hand"))
            else:
                self._note(context, acted, name, REPLACE)
                if not deleting(claim):
                    metadata = claim["metadata"]
                    self.kube.delete(ObjectRef(NODE_CLAIM, metadata["name"]), uid=metadata.get("uid"))
                self.log.warning("node %s is replaced: NodeClaim %s deleted", name, claim["metadata"]["name"])
        return left

    def _note(self, context: Mapping[str, Any], acted: dict[str, str], name: str, action: str) -> None:
        acted[name] = action
        context["task_state_store"].set(ACTED, acted)
