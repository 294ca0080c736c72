"""The plan of a drain by hand, and a person's answer to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, POD_DISRUPTION_BUDGET
from gpu_fleet.core.teardown.approval import ABOUT, APPROVE, PLAN_ID, about
from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.interruptions.block import block_account
from gpu_fleet.operators.interruptions.drain import INTERRUPTION
from gpu_fleet.operators.interruptions.fleet_nodes import FleetNodes, fleet_nodes
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.operators.preconditions import Approved
from gpu_fleet.operators.teardown.approval import TeardownApprovalOperator

if TYPE_CHECKING:
    from gpu_fleet.core.interruptions.manual_plan import ManualPlan
    from gpu_fleet.core.interruptions.nodes import OurNode
    from gpu_fleet.core.interruptions.request import DrainRequest

#: The run's Param that asks for the plan alone.
PARAM_DRY_RUN = "dryRun"


def planned_nodes(context: Mapping[str, Any], plan_task_id: str) -> dict[str, str]:
    """UID to name of the nodes of a run's plan.

    :raises PermanentError: ``NoPlan``: nothing is drained without a plan.
    """
    found = context["ti"].xcom_pull(task_ids=plan_task_id)
    if not isinstance(found, Mapping) or "plan" not in found:
        raise PermanentError(
            f"task {plan_task_id} of this run has no plan as its result, so it is unknown what is to be drained; clear "
            f"{plan_task_id} and what follows it",
            reason="NoPlan",
        )
    return {str(node["uid"]): str(node["node"]) for node in found["plan"]["nodes"]}


class PlanDrainOperator(FleetOperator):
    """Reports which nodes the run's Params choose, what becomes of every pod there, and what it costs. Changes nothing.

    :param approved_task_id: task whose plan a person has approved, or which needed no approval: this plan is about the
        same nodes, as they are by now, and evicts no more users' GPU pods.
    :returns: ``{"plan": {…}, "markdown": "…", "id": "…", "replace": {pool: {"nodes", "surge"}}}``; the Markdown is the
        approval's text, the id identifies the plan that the answer is about, and ``replace`` has the pools whose nodes
        are replaced first. A dry run also leaves the plan as the run's report.
    :raises SpecError: a Param is wrong (``UnknownNode`` for a node that is none of the cluster file's).
    :raises PermanentError: ``DrainRefused`` if a pod must not be evicted: nothing was cordoned or evicted.
        ``NoRoomToReplace`` if ``limits.nodes`` leaves no room for the nodes that are to come first. ``PlanGrew`` if
        users' GPU pods would be evicted that nobody has approved. A dry run shows these and does not fail.
    """

    preconditions = (Approved(),)
    operator_extra_links = (ReportLink(),)
    ui_color = "#fdf0e3"

    def __init__(self, *, approved_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approved_task_id = approved_task_id
        #: Whether the result says which pools later tasks act on, see ``operators/preconditions.py``.
        self.chooses_pools = approved_task_id is not None

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.interruptions.manual_text import to_markdown
        from gpu_fleet.core.interruptions.request import DrainRequest

        request = DrainRequest.of(context["params"])
        plan = self._plan(context, request)
        markdown = to_markdown(plan, self.spec)
        self.log.info("%s", markdown)
        if request.dry_run or not plan.nodes:
            context["ti"].xcom_push(INTERRUPTION, {**self._as_report(plan), **block_account(self, context, ())})
        if not plan.nodes:
            raise AirflowSkipException(plan.headline())
        if not request.dry_run:
            self._refuse(context, plan)
        first = {pool: each.to_json() for pool, each in plan.replaced.items()}
        return {"plan": plan.to_json(), "markdown": markdown, PLAN_ID: uuid4().hex, "replace": first}

    def _plan(self, context: Mapping[str, Any], request: DrainRequest) -> ManualPlan:
        from gpu_fleet.core.drain.rules import DrainRules
        from gpu_fleet.core.interruptions.manual_plan import make_plan
        from gpu_fleet.core.interruptions.replaced_first import replaced_first
        from gpu_fleet.hooks.cluster.pods import pods_on
        from gpu_fleet.hooks.cluster.prices import prices_of_nodes

        found = fleet_nodes(self.kube, self.spec)
        nodes, passed_over = self._nodes(context, request, found)
        now = self.kube.now()
        rules = DrainRules.of(
            self.spec,
            self.kube.list_metadata(DAEMON_SET),
            bare_pods_go=request.bare_pods,
            nodes=found.objects_of(nodes),
            now=now,
        )
        return make_plan(
            self.spec,
            request,
            nodes,
            pods_on(self.kube, (node.name for node in nodes)),
            rules=rules.of_a_lost_node() if request.ends_a_block else rules,
            budgets=self.kube.list(POD_DISRUPTION_BUDGET) if nodes else [],
            prices=prices_of_nodes(self.spec, nodes),
            now=now,
            passed_over=passed_over,
            replaced=replaced_first(self.spec, nodes, found.objects, found.claims) if request.replace_first else {},
        )

    def _nodes(
        self, context: Mapping[str, Any], request: DrainRequest, found: FleetNodes
    ) -> tuple[list[OurNode], dict[str, str]]:
        from gpu_fleet.core.interruptions.request import select

        if self.approved_task_id is None:
            selected = select(request, found.ours.values())
            return list(selected.chosen), dict(selected.passed_over)
        planned = planned_nodes(context, self.approved_task_id)
        nodes = [node for node in found.with_uids(set(planned)) if not node.leaving]
        gone = set(planned) - {node.uid for node in nodes}
        return nodes, {planned[uid]: "it is gone by now, or being removed" for uid in gone}

    def _refuse(self, context: Mapping[str, Any], plan: ManualPlan) -> None:
        refuse(self, context, plan, self.approved_task_id)
        if problems := [each.problem for each in plan.replaced.values() if each.problem]:
            raise PermanentError(
                f"the nodes of cluster {plan.cluster} cannot be replaced before they are drained: "
                f"{'; '.join(problems)}. Nothing was changed: raise limits.nodes, drain fewer nodes at a time, or "
                "start a run with replaceFirst: false",
                reason="NoRoomToReplace",
            )

    def _as_report(self, plan: ManualPlan) -> dict[str, Any]:
        """The plan as the run's report: it is about what would happen."""
        from gpu_fleet.core.interruptions.report import DRAINED, InterruptionReport, NodeOutcome

        now = self.kube.now()
        words = {pod.name: "; ".join(filter(None, (f"would be: {pod.fate.value}", pod.budget))) for pod in plan.pods}
        return InterruptionReport(
            cluster=plan.cluster,
            began=now,
            ended=now,
            nodes=[
                {**node.to_json(), "kind": MANUAL, "way": "Plan", "outcome": NodeOutcome.NOTED.value}
                for node in plan.nodes
            ],
            pods=[
                {
                    "namespace": pod.name.partition("/")[0],
                    "name": pod.name.partition("/")[2],
                    "node": pod.node,
                    "gpus": pod.gpus,
                    "outcome": "Planned",
                    "rule": pod.rule,
                    "note": pod.message,
                    "reason": words[pod.name],
                }
                for pod in plan.pods
            ],
            unknown=dict(plan.passed_over),
            gpu_seconds=plan.gpu_seconds,
            usd=plan.usd,
            prices=plan.prices,
            deed=DRAINED,
            said=plan.headline(),
        ).to_json()


#: The cause of a node's drain, where notices of EC2 have theirs.
MANUAL = "ManualDrain"


def refuse(operator: FleetOperator, context: Mapping[str, Any], plan: ManualPlan, approved_task_id: str | None) -> None:
    """
    :raises PermanentError: ``DrainRefused``, ``PlanGrew``, see :class:`PlanDrainOperator`.
    """
    from gpu_fleet.core.interruptions.manual_plan import growth

    if plan.drain.refuse:
        raise PermanentError(
            f"the drain of {', '.join(node.name for node in plan.nodes)} cannot begin; nothing was evicted: "
            f"{plan.drain.refusal()}\nOnce these pods have ended, clear {operator.task_id} and what follows it",
            reason="DrainRefused",
        )
    if approved_task_id is None or not plan.request.ask_first:
        return
    approved = context["ti"].xcom_pull(task_ids=approved_task_id) or {}
    if grown := growth(approved.get("plan") or {}, plan):
        raise PermanentError(
            f"the drain would also evict {', '.join(grown[:10])}{' and more' if len(grown) > 10 else ''}: users' pods "
            f"that hold GPUs and are not in the plan that was approved; nothing was evicted: clear {approved_task_id} "
            "and what follows it, or start another run, and approve the new plan",
            reason="PlanGrew",
        )


class DrainApprovalOperator(TeardownApprovalOperator):
    """Asks a person to approve a drain's plan, if it evicts users' pods that hold GPUs.

    Without such pods, and with the Param ``askFirst: false``, it answers by itself, so that the tasks after it can
    demand an answer to the plan in force in any case. In a dry run it ends the run: everything after it is skipped.
    """

    def execute(self, context: Any) -> Any:
        ti, params = context["ti"], context["params"]
        if params.get(PARAM_DRY_RUN):
            raise AirflowSkipException(f"{PARAM_DRY_RUN}: only the plan was made")
        plan = ti.xcom_pull(task_ids=self.plan_task_id)
        hit = ((plan or {}).get("plan") or {}).get("gpuPods")
        if plan and (not hit or not params.get("askFirst", True)):
            why = "no user's pod that holds a GPU is evicted" if not hit else "askFirst: false"
            self.log.info("no approval is needed: %s", why)
            return {"chosen_options": [APPROVE], "why": why, ABOUT: about(plan)}
        return super().execute(context)
