"""Drains the nodes that a person has chosen, and removes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.drain.drained import Drained, Target
from gpu_fleet.core.drain.records import Outcome, PodRecord
from gpu_fleet.core.errors import DeadlinePassed, GpuFleetError, TransientError
from gpu_fleet.core.interruptions.report import DRAINED, InterruptionReport, outcome_of
from gpu_fleet.core.interruptions.victims import displaced, gpu_seconds
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, POD_DISRUPTION_BUDGET
from gpu_fleet.operators.base import DRAIN_TASK_ID, FleetOperator, attempt, run_name
from gpu_fleet.operators.draining.accounts import keep, kept
from gpu_fleet.operators.draining.executor import Executor
from gpu_fleet.operators.interruptions.block import block_account
from gpu_fleet.operators.interruptions.cordons import EVICTING, leave_body, write
from gpu_fleet.operators.interruptions.drain import DISPLACED, INTERRUPTION
from gpu_fleet.operators.interruptions.fleet_nodes import fleet_nodes
from gpu_fleet.operators.interruptions.manual_plan import MANUAL, planned_nodes, refuse
from gpu_fleet.operators.interruptions.removal import remove_node
from gpu_fleet.operators.interruptions.rows import cost_of, ended_of
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER

if TYPE_CHECKING:
    from gpu_fleet.core.drain.actions import Limits
    from gpu_fleet.core.drain.rules import DrainRules
    from gpu_fleet.core.interruptions.nodes import OurNode
    from gpu_fleet.core.interruptions.request import DrainRequest

#: Key in Airflow's task state store: when the drain began, by the cluster's clock; all tries share its deadline.
BEGAN = "began"
#: Why a planned node is not drained.
GONE = (
    "it was gone when the drain began: somebody else has removed it, as Karpenter does by itself with a node whose "
    "instance has a scheduled change"
)
#: Outcomes of pods that were not asked for anything.
_UNTOUCHED = (Outcome.WAITING, Outcome.LEFT)


class DrainByHandOperator(FleetOperator):
    """Evict the pods of the plan's nodes, side by side: within their budgets, or by a deadline.

    Without a deadline, evictions are retried for ``drain.timeout``; then ``drain.whenTimeExpires`` decides. With one,
    what a PodDisruptionBudget still holds is deleted so early that its own grace period ends in time. The pods are
    judged once more before the first eviction, now that no other pod can come. Safe to repeat: requests name the pods'
    UIDs, and what was asked for is kept over a kill.

    :param plan_task_id: the task whose plan is carried out.
    :param approved_task_id: the task whose plan a person has approved.
    :returns: the report's figures, and what the tasks after it need: ``{"headline", "nodes", "pods", "lost", "forced",
        "pools": {pool: [nodes]}}``; XCom ``interruption`` has the whole report, ``displaced`` what has to find a place
        again, ``evicting`` is set before the first eviction.
    :raises PermanentError: ``DrainRefused``, ``PlanGrew``: nothing was evicted.
    :raises DeadlinePassed: pods are left that may not be forced; the message names them.
    """

    preconditions = CHANGES_CLUSTER
    operator_extra_links = (ReportLink(),)
    ui_color = "#fdf0e3"

    def __init__(self, *, plan_task_id: str, approved_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_task_id = plan_task_id
        self.approved_task_id = approved_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.core.interruptions.request import DrainRequest
        from gpu_fleet.operators.draining.drain import drain_nodes

        request = DrainRequest.of(context["params"])
        began, records = self._began(context), kept(context)
        if _asked(records):
            context["ti"].xcom_push(EVICTING, True)
        found = fleet_nodes(self.kube, self.spec)
        planned = planned_nodes(context, self.plan_task_id)
        nodes = found.with_uids(set(planned))
        gone = {uid: name for uid, name in planned.items() if uid not in {node.uid for node in nodes}}
        rules = self._rules(request, found.objects_of(nodes))
        self._judge(context, request, nodes, rules)
        limits = request.limits(self.spec, began)
        drained = drain_nodes(
            self.kube,
            [Target(node.name, limits) for node in nodes],
            rules=rules,
            policy=self.spec.drain,
            records=records,
            on_progress=lambda records: self._keep(context, records),
            on_change=self._log,
        )
        held = {} if request.has_deadline else self._held(drained, nodes, rules)
        report = self._report(request, nodes, gone.values(), drained, held, limits, began)
        ti = context["ti"]
        ti.xcom_push(INTERRUPTION, report.to_json())
        ti.xcom_push(DISPLACED, displaced(drained.records, ended_of(drained.records), {}))
        if held:
            raise self._left(held, drained)
        self.log.info("%s", report.headline())
        return {
            "headline": report.headline(),
            "nodes": len(report.nodes),
            "pods": len(report.pods),
            "forced": len(report.with_outcome("Forced")),
            "lost": len(report.with_outcome("Lost")),
            "pools": _with_gone(report.lost_pools(), context["ti"].xcom_pull(task_ids=self.plan_task_id), gone),
        }

    # --- before ------------------------------------------------------------------------------------------------

    def _began(self, context: Mapping[str, Any]) -> float:
        store = context["task_state_store"]
        known = store.get(BEGAN)
        if isinstance(known, Mapping) and known.get("attempt") == attempt(context):
            return float(known["at"])
        now = float(self.kube.now())
        store.set(BEGAN, {"at": now, "attempt": attempt(context)})
        return now

    def _rules(self, request: DrainRequest, nodes: list[dict[str, Any]]) -> DrainRules:
        from gpu_fleet.core.drain.rules import DrainRules

        rules = DrainRules.of(
            self.spec,
            self.kube.list_metadata(DAEMON_SET),
            bare_pods_go=request.bare_pods,
            nodes=nodes,
            now=self.kube.now(),
        )
        return rules.of_a_lost_node() if request.ends_a_block else rules

    def _judge(
        self, context: Mapping[str, Any], request: DrainRequest, nodes: list[OurNode], rules: DrainRules
    ) -> None:
        from gpu_fleet.core.interruptions.manual_plan import make_plan
        from gpu_fleet.hooks.cluster.pods import pods_on
        from gpu_fleet.hooks.files.prices import load_prices

        plan = make_plan(
            self.spec,
            request,
            nodes,
            pods_on(self.kube, (node.name for node in nodes)),
            rules=rules,
            budgets=self.kube.list(POD_DISRUPTION_BUDGET),
            # Nobody reads this plan: it is only judged.
            prices=load_prices(self.spec.region),
            now=self.kube.now(),
        )
        refuse(self, context, plan, self.approved_task_id)

    # --- meanwhile ---------------------------------------------------------------------------------------------

    def _keep(self, context: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> None:
        if _asked(records):
            context["ti"].xcom_push(EVICTING, True)
        keep(context, records)

    def _log(self, record: PodRecord) -> None:
        why = f": {record.reason}" if record.reason else ""
        self.log.info("%s %s on %s%s", record.outcome.value, record, record.node, why)

    # --- after -------------------------------------------------------------------------------------------------

    def _held(self, drained: Drained, nodes: list[OurNode], rules: DrainRules) -> dict[str, list[str]]:
        """Node -> the pods that are left there and should not be; a pod whose containers have ended is none."""
        from gpu_fleet.core.drain.plan import plan_drain
        from gpu_fleet.hooks.cluster.pods import pods_on

        stuck = {record.uid for record in drained.with_outcome(Outcome.STUCK)}
        names = {node.name for node in nodes}
        plan = plan_drain(
            [pod for pod in pods_on(self.kube, names) if (pod.get("spec") or {}).get("nodeName") in names], rules
        )
        left: dict[str, list[str]] = {}
        for pod in (*plan.evict, *plan.wait, *plan.refuse):
            if pod.uid not in stuck and pod.missed:
                left.setdefault(pod.node, []).append(str(pod))
        for node, why in drained.unseen.items():
            left.setdefault(node, []).append(f"(unknown: {why})")
        return left

    def _left(self, held: Mapping[str, list[str]], drained: Drained) -> DeadlinePassed:
        by_name = {str(record): record for record in drained.records}
        lines = "".join(
            f"\n  - {pod} on {node}{f': {by_name[pod].reason}' if pod in by_name and by_name[pod].reason else ''}"
            for node, pods in sorted(held.items())
            for pod in sorted(pods)
        )
        return DeadlinePassed(
            f"{sum(map(len, held.values()))} pods are left after {drained.seconds:.0f} s, and no node was removed: "
            f"delete these pods or relax their PodDisruptionBudgets, then clear {self.task_id} and what follows it; or "
            f"start a run with a deadline:{lines}"
        )

    def _report(
        self,
        request: DrainRequest,
        nodes: list[OurNode],
        departed: Iterable[str],
        drained: Drained,
        held: Mapping[str, list[str]],
        limits: Limits,
        began: float,
    ) -> InterruptionReport:
        records, ends = drained.records, ended_of(drained.records)
        rows = []
        for node in nodes:
            mine = [record for record in records if record.node == node.name]
            gone = [record.gone_at for record in mine if record.gone_at is not None]
            still = [record for record in mine if record.gone_at is None and record.outcome is not Outcome.LEFT]
            rows.append(
                {
                    **node.to_json(),
                    "kind": MANUAL,
                    "at": began,
                    "seen": began,
                    "deadline": limits.deadline,
                    "way": "Drain",
                    "why": request.reason,
                    "outcome": outcome_of(
                        [record.to_json() for record in mine],
                        acted=True,
                        unseen=drained.unseen.get(node.name, ""),
                        held=node.name in held,
                    ),
                    "emptiedAt": max(gone) if gone and not still else None,
                    "removed": "",
                }
            )
        usd, prices = cost_of(self.spec, nodes, records, ends)
        return InterruptionReport(
            cluster=self.spec.name,
            began=began,
            ended=self.kube.now(),
            nodes=rows,
            pods=[record.to_json() for record in records],
            unknown=dict.fromkeys(departed, GONE),
            gpu_seconds=gpu_seconds(records, ends),
            usd=usd,
            prices=prices,
            deed=DRAINED,
        )


def _with_gone(
    pools: Mapping[str, list[str]], plan: Mapping[str, Any], gone: Mapping[str, str]
) -> dict[str, list[str]]:
    """The pools' nodes that are drained, and those that somebody else has removed since the plan was made."""
    found = {pool: list(names) for pool, names in pools.items()}
    for node in plan["plan"]["nodes"]:
        if node["uid"] in gone:
            found.setdefault(str(node["pool"]), []).append(str(node["node"]))
    return {pool: sorted(names) for pool, names in sorted(found.items())}


def _asked(records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a pod has been asked to go, or was about to be."""
    return any(Outcome(row.get("outcome", Outcome.WAITING)) not in _UNTOUCHED for row in records.values())


class RemoveDrainedOperator(FleetOperator):
    """Removes the drained nodes: deletes their NodeClaims, and terminates the instances of node groups.

    With the Param ``remove: false`` they stay, cordoned as by a person: no later run of the package uncordons them.

    :param plan_task_id: the task whose plan was carried out.
    :returns: node -> what was done, in words; the run's report says it, too.
    :raises TransientError: ``NotRemoved``, after all others were removed: a node could not be.
    """

    preconditions = CHANGES_CLUSTER
    operator_extra_links = (ReportLink(),)
    ui_color = "#fdf0e3"

    def __init__(self, *, plan_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_task_id = plan_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, str]:
        found = fleet_nodes(self.kube, self.spec)
        planned = planned_nodes(context, self.plan_task_id)
        nodes = found.with_uids(set(planned))
        done = dict.fromkeys(set(planned.values()) - {node.name for node in nodes}, "it is gone")
        if not context["params"].get("remove", True):
            run = run_name(context)
            left = write(self.kube, found.objects_of(nodes), lambda node: leave_body(node, run))
            done |= {node.name: "it stays cordoned" for node in nodes}
            self.log.info("%s stay cordoned; kubectl uncordon puts them back into service", ", ".join(left) or "none")
            self._tell(context, done)
            return done
        failed = {}
        with Executor() as executor:
            for node, words, error in executor.each(self._remove, nodes):
                done[node.name] = words
                if error is not None:
                    failed[node.name] = error.message
        self._tell(context, done)
        if failed:
            shown = "; ".join(f"{name}: {why}" for name, why in sorted(failed.items()))
            raise TransientError(f"nodes could not be removed: {shown}", reason="NotRemoved")
        return done

    def _remove(self, node: OurNode) -> tuple[OurNode, str, GpuFleetError | None]:
        try:
            words = remove_node(self.kube, self.spec, node)
        except GpuFleetError as error:
            return node, f"could not be removed: {error.message}", error
        self.log.info("node %s: %s", node.name, words)
        return node, words, None

    def _tell(self, context: Mapping[str, Any], done: Mapping[str, str]) -> None:
        """The drain's report with what became of its nodes."""
        ti = context["ti"]
        value = ti.xcom_pull(task_ids=DRAIN_TASK_ID, key=INTERRUPTION)
        if isinstance(value, Mapping):
            nodes = [{**node, "removed": done.get(str(node.get("node")), "")} for node in value.get("nodes") or []]
            now = max(self.kube.now(), float(value["ended"]))
            ti.xcom_push(INTERRUPTION, {**value, "nodes": nodes, "ended": now, **block_account(self, context, nodes)})
