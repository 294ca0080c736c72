"""Proves that the GPUs of a pool's nodes work and are shared as promised, without disturbing users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import ApiUnavailable, Forbidden, GateFailed, SpecError, ValidationFailed
from gpu_fleet.core.probes.plan import MEASURING, Probe, diagnosable_gpus, plan_round
from gpu_fleet.core.validation.chosen import ChosenNodes
from gpu_fleet.core.validation.report import Outcome, PoolReport
from gpu_fleet.core.validation.user_pods import NO_USER_PODS, user_pods_by_node
from gpu_fleet.core.verdict import Verdict
from gpu_fleet.operators.pool import PoolOperator, upstream_tasks
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, GIVES_BACK, SelectedPool
from gpu_fleet.operators.validation.nodes import protected_nodes
from gpu_fleet.operators.validation.progress import Plan, Progress
from gpu_fleet.triggers.looking import look
from gpu_fleet.triggers.waiting import await_gate

if TYPE_CHECKING:
    from gpu_fleet.operators.validation.pods import ProbePods

#: XCom keys of a probe task: the whole report, and what came of it (also after a failure).
REPORT, SUMMARY = "report", "summary"
#: XCom key for what was planned per node of the current wave, which the verdict needs after the wait.
PLAN = "plan"

#: Outcomes of an earlier probe for which a measuring probe leaves a node out: what is broken need not be measured, and
#: the pool's other nodes must be.
NOT_MEASURED = frozenset({"Failed", "Inconclusive"})


class RunProbesOperator(PoolOperator):
    """Runs one probe on the protected nodes of a pool, ``validation.nodes.atOnce`` at a time, and gives the verdict.

    ``sharing`` and ``exclusive`` fill every node and include vectorAdd, the pod too many, the distribution over GPUs
    and the refusal of a request for two: one round, one wait. ``vectoradd`` is one pod per node; ``overflow`` the
    refusal alone; ``throughput`` fills every node with processes that compute; ``dcgm`` runs NVIDIA's diagnostics. Only
    free GPUs are taken; a node without one is 'Busy'. Nodes that fail before anything was run on them get
    no pods, and those that failed an earlier probe of this run are not measured.

    Nodes are probed in waves; the pods of a wave are gone before the next one begins. A task that was killed continues
    with the wave that was interrupted.

    :param probe: see :class:`gpu_fleet.core.probes.plan.Probe`.
    :returns: ``{"probe", "outcome", "nodes": {node: outcome}, "failures": [...]}``; the whole report is the XCom
        ``report``, and both exist after a failure, too. A probe for which no node is left pushes only ``summary``,
        with the outcome ``Skipped``, and is skipped.
    :raises ValidationFailed: naming nodes, reasons and causes.
    :raises GateFailed: the evidence is missing or contradicts itself; retried.

    The pods of the first node are shown among the task's rendered fields.
    """

    preconditions = (SelectedPool(), *CHANGES_CLUSTER)
    template_fields = ("manifests",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"manifests": "yaml"}
    #: Airflow renders fields before execute(); this makes it store them again afterwards, with the manifests.
    overwrite_rtif_after_execution = True
    ui_color = "#f6eefb"

    def __init__(self, *, probe: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        try:
            self.probe = str(Probe(probe))
        except ValueError as error:
            known = ", ".join(Probe)
            raise SpecError(f"there is no probe {probe!r}", field="probe", remedy=f"one of: {known}") from error
        if Probe(probe) in MEASURING:  # These run whatever came of the probe before them.
            self.preconditions = (SelectedPool(), *GIVES_BACK)
        self.manifests = ""

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        chosen = self._chosen(context)
        nodes = self._nodes_left(context, chosen)
        return self._advance(context, chosen, Progress.begin(context, nodes, self.spec.validation.nodes.at_once))

    def probed(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        """A wave's probes are over, or their deadline has passed: then those that have not finished have failed.

        Except if the API server could not be seen at the deadline: the probes' results are not known then, and no node
        is blamed.

        :raises ApiUnavailable: they are still not over; the next try probes the same nodes again.
        """
        verdict = Verdict.from_json(event["verdict"])
        self.log.info("%s: %s: %s", event["type"], verdict.reason, verdict.message)
        if verdict.failed:
            raise verdict.error()
        self.prepare(context)
        chosen, progress = protected_nodes(self, context), Progress.load(context)
        plan = Plan.from_json(context["ti"].xcom_pull(task_ids=self.task_id, key=PLAN))
        if event["type"] == "deadline" and verdict.blind:
            verdict = self._seen_at_last(context, plan, verdict)
        plan = self._awaited(context, plan, verdict)
        self._end_wave(context, chosen, progress, plan)
        return self._advance(context, chosen, progress)

    # --- waves ---------------------------------------------------------------------------------------------------

    def _advance(self, context: Mapping[str, Any], chosen: ChosenNodes, progress: Progress) -> dict[str, Any]:
        """Wave after wave; each wait may defer the task, which then resumes in :meth:`probed`."""
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.operators.validation.verdicts import pool_report

        while (wave := progress.wave()) is not None:
            pods = self._pods(context)
            try:
                plan, refused = pods.create(self._plan(chosen, wave), first=not progress.ended)
            finally:
                self.manifests = pods.manifests or self.manifests
            if refused is None:
                plan = self._awaited(context, plan)
            self._end_wave(context, chosen, progress, plan, refused)
        values = [context["ti"].xcom_pull(task_ids=id_, key=REPORT) for id_ in upstream_tasks(self, RunProbesOperator)]
        earlier = [PoolReport.from_json(value) for value in values if value]
        return self._publish(context, pool_report(self, context, Probe(self.probe), chosen, progress, earlier))

    def _pods(self, context: Mapping[str, Any]) -> ProbePods:
        from gpu_fleet.operators.validation.pods import ProbePods

        return ProbePods(self, context, Probe(self.probe))

    def _awaited(self, context: Mapping[str, Any], plan: Plan, verdict: Verdict | None = None) -> Plan:
        """Wait until the wave is over; where a user's pod takes a probe's place the other probes are deleted at once.

        :param verdict: of the wait that has just ended, if there was one.
        :returns: the plan without the nodes that were given up, which are Busy.
        """
        from gpu_fleet.core.gates.validation import DISPLACED
        from gpu_fleet.core.validation.judge import busy_node

        while any(not round_.busy for round_ in plan.rounds):
            if verdict is None:
                context["ti"].xcom_push(PLAN, plan.to_json())
                verdict = self._await(context, plan)
            if verdict.reason != DISPLACED:
                break
            nodes, verdict = {str(node) for node in (verdict.data or {}).get("nodes") or ()}, None
            self.log.info("deleting the probes on %s: a user's pod took the place of one", ", ".join(sorted(nodes)))
            self._pods(context).delete(nodes)
            words = "a user's pod took the place of a probe on node {}; the other probes were ended at once"
            plan = plan.without({node: busy_node(node, words.format(node)) for node in nodes})
        return plan

    def _seen_at_last(self, context: Mapping[str, Any], plan: Plan, blind: Verdict) -> Verdict:
        """Look once from the worker if the triggerer could not see at the deadline; returned if the probes are over."""
        found = look("probes_finished", self._gate_args(context, plan), self.access())
        self.log.info("looked at again: %s: %s", found.reason, found.message)
        if found.ready:
            return found
        if found.failed:
            raise found.error()
        raise ApiUnavailable(
            f"the probes of pool {self.node_pool} could not be seen at their deadline ({blind.reason}: "
            f"{blind.message}), and the worker sees {found.reason}: {found.message}; no node is judged, and the next "
            "try probes these nodes again",
            reason=blind.reason,
        )

    def _await(self, context: Mapping[str, Any], plan: Plan) -> Verdict:
        args = self._gate_args(context, plan)
        return await_gate(self, context, "probes_finished", args, self.spec.deadlines.validation.seconds, "probed")

    def _gate_args(self, context: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
        return {
            # Probes that compute would take time from the user's pod.
            "yields": Probe(self.probe) is Probe.THROUGHPUT and self.this_pool.shared,
            "namespace": self.spec.validation.namespace,
            "selector": self._pods(context).selector,
            "pool": self.node_pool,
            "rounds": [round_.to_json() for round_ in plan.rounds],
        }

    def _end_wave(
        self,
        context: Mapping[str, Any],
        chosen: ChosenNodes,
        progress: Progress,
        plan: Plan,
        refused: Forbidden | None = None,
    ) -> None:
        from gpu_fleet.core.validation.judge import refusal_reason, refused_node
        from gpu_fleet.operators.validation.verdicts import judge_wave

        if refused is None:
            reports = [*plan.unfit, *judge_wave(self, Probe(self.probe), chosen, plan, self._pods(context))]
        else:
            reason = refusal_reason(refused.message)
            reports = [*plan.unfit, *(refused_node(each.node, reason, refused.message) for each in plan.rounds)]
        progress.end_wave(context, sorted(reports, key=lambda report: report.node))
        # Its GPUs are free at once, and a cleared task starts afresh instead of finding its old pods.
        self._pods(context).delete()

    # --- before a wait -------------------------------------------------------------------------------------------

    def _chosen(self, context: Mapping[str, Any]) -> ChosenNodes:
        try:
            return protected_nodes(self, context)
        except SpecError as error:
            if Probe(self.probe) in MEASURING:
                # It runs whatever happened before; that the nodes were never protected is another task's failure.
                raise AirflowSkipException(error.message) from error
            raise

    def _nodes_left(self, context: Mapping[str, Any], chosen: ChosenNodes) -> list[str]:
        probe, nodes = Probe(self.probe), list(chosen.nodes)
        if probe not in MEASURING:
            return nodes
        failed: set[str] = set()
        for task_id in upstream_tasks(self, RunProbesOperator):
            summary = context["ti"].xcom_pull(task_ids=task_id, key=SUMMARY) or {}
            failed |= {node for node, outcome in (summary.get("nodes") or {}).items() if outcome in NOT_MEASURED}
        left = [node for node in nodes if node not in failed]
        cause = ""
        if nodes and not left:
            cause = "every node has failed an earlier probe"
        elif probe is Probe.DCGM and diagnosable_gpus(self.this_pool, chosen.physical) is None:
            cause = "no container of this pool can request all GPUs of a node; see docs/guides/validation.md"
        if cause:
            skipped = {"probe": self.probe, "outcome": "Skipped", "nodes": {}, "failures": []}
            context["ti"].xcom_push(SUMMARY, skipped)
            raise AirflowSkipException(f"probe {self.probe} of pool {self.node_pool}: {cause}")
        return left

    def _plan(self, chosen: ChosenNodes, nodes: Sequence[str]) -> Plan:
        from gpu_fleet.core.validation.judge import busy_node
        from gpu_fleet.hooks.cluster.pods import pods_on
        from gpu_fleet.operators.validation.fitness import unfit_nodes

        probe, physical, replicas = Probe(self.probe), chosen.physical, chosen.replicas
        unfit = unfit_nodes(self, probe, nodes, physical=physical, replicas=replicas)
        user_pods = user_pods_by_node(pods_on(self.kube, nodes))
        rounds = [
            plan_round(
                probe,
                self.spec,
                self.this_pool,
                node,
                slots=physical * replicas,
                held=user_pods.get(node, NO_USER_PODS).gpus,
                physical=physical,
            )
            for node in nodes
            if node not in unfit
        ]
        # A measuring probe would compete with pods that compute there without having requested a GPU.
        disturbed = {
            round_.node: busy_node(
                round_.node,
                f"pods see the GPUs of node {round_.node} without having requested any and may compute on them: "
                + ", ".join(str(each) for each in seeing[:5]),
                "Busy",
            )
            for round_ in rounds
            if probe in MEASURING and (seeing := user_pods.get(round_.node, NO_USER_PODS).strangers)
        }
        for report in unfit.values():
            if cause := report.cause:
                self.log.info("%s is not probed: %s: %s", report.node, cause.reason, cause.message)
        return Plan(rounds, list(unfit.values()), self.kube.now()).without(disturbed)

    # --- after it ------------------------------------------------------------------------------------------------

    def _publish(self, context: Mapping[str, Any], report: PoolReport) -> dict[str, Any]:
        context["ti"].xcom_push(REPORT, report.to_json())
        context["ti"].xcom_push(SUMMARY, report.summary())
        self._pods(context).delete()
        self.log.info("%s", report.sentence())
        for node in report.nodes:
            self.log.info("  %s: %s", node.node, node.outcome)
            # In a large pool whose nodes all pass, one node's checks say as much as those of all nodes.
            if node.outcome is not Outcome.PASSED or node is report.nodes[0]:
                for check in node.checks:
                    self.log.info("    %s: %s %s: %s", check.name, check.outcome, check.reason, check.message)
        if report.outcome is Outcome.FAILED:
            raise ValidationFailed(report.sentence(), reason=report.failures()[0]["reason"])
        if report.outcome is Outcome.INCONCLUSIVE:
            Progress.forget(context)  # a retry measures again
            raise GateFailed(report.sentence(), reason=report.failures()[0]["reason"])
        return report.summary()
