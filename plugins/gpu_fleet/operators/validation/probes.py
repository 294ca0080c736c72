"""Proves that the GPUs of a pool's nodes work and are shared as promised, disturbing nobody."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import ApiUnavailable, Forbidden, GateFailed, SpecError, ValidationFailed
from gpu_fleet.core.kubernetes.kinds import EVENT, NODE_CLAIM, POD
from gpu_fleet.core.kubernetes.names import PLACEHOLDER_PRIORITY_CLASS, SYSTEM_NAMESPACE
from gpu_fleet.core.probes.plan import MEASURING, Probe, pinned_to
from gpu_fleet.core.verdict import Verdict
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.objects.apply import as_yaml
from gpu_fleet.operators.objects.pods import create_pod, delete_pods, ensure_objects
from gpu_fleet.operators.pool import PoolOperator
from gpu_fleet.operators.validation.nodes import protected_nodes, upstream_tasks
from gpu_fleet.operators.validation.progress import Plan, Progress, look_at_nodes, remove_pods, unfit_nodes
from gpu_fleet.triggers.looking import await_gate

if TYPE_CHECKING:
    from gpu_fleet.core.kubernetes.objects import PoolClaim
    from gpu_fleet.core.probes.pods import PodMaker
    from gpu_fleet.core.validation.chosen import ChosenNodes
    from gpu_fleet.core.validation.report import NodeReport, PoolReport

#: XCom keys of a probe task: the whole report, and what came of it (also after a failure).
REPORT, SUMMARY = "report", "summary"
#: XCom key for what was planned per node of the current wave, which the verdict needs after the wait.
PLAN = "plan"

#: Outcomes of the probe before a measuring one which leave a node out of it: what is broken need not be measured, and
#: its other nodes must be.
NOT_MEASURED = frozenset({"Failed", "Inconclusive"})

#: Seconds within which holders get their shares, free as they were when planned, and the pause between two looks.
HOLD_PATIENCE_S, HOLD_PAUSE_S = 30.0, 0.5
#: Seconds by which a pod is created after its holders have started, so that their start times, whole seconds, differ.
STARTS_APART_S = 1.0

#: Pods created or deleted at the same time. Enough for a pool of fifty nodes, far below API priority and fairness.
AT_ONCE = 8


class RunProbesOperator(PoolOperator):
    """Runs one probe on the protected nodes of a pool, ``validation.nodes.atOnce`` at a time, and gives the verdict.

    ``sharing`` and ``exclusive`` fill every node and include vectorAdd, the pod too many, the distribution over GPUs
    and the refusal of a request for two: one round, one wait. ``vectoradd`` is one pod per node; ``overflow`` the
    refusal alone; ``throughput`` fills every node with processes that compute; ``dcgm`` runs NVIDIA's diagnostics. Only
    GPUs that nobody uses are taken; a node without one is 'Busy'. Nodes that fail before anything was run on them get
    no pods, and those that failed an earlier probe of this run are not measured.

    Nodes are probed in waves; the pods of a wave are gone before the next one begins. A task that was killed goes on
    with the wave that it had come to.

    :param probe: see :class:`gpu_fleet.core.probes.plan.Probe`.
    :returns: ``{"probe", "outcome", "nodes": {node: outcome}, "failures": [...]}``; the whole report is the XCom
        ``report``, and both are there after a failure, too. A probe for which no node is left pushes only ``summary``,
        with the outcome ``Skipped``, and is skipped.
    :raises ValidationFailed: naming nodes, reasons and causes.
    :raises GateFailed: the evidence is missing or contradicts itself; retried.

    The pods of the first node are shown among the task's rendered fields.
    """

    changes_cluster = True
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
        # These run whatever came of the probe before them.
        self.only_in_turn = Probe(probe) in MEASURING
        self.manifests = ""

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        chosen = self._chosen(context)
        nodes = self._nodes_left(context, chosen)
        return self._advance(context, chosen, Progress.begin(context, nodes, self.spec.validation.nodes.at_once))

    def probed(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        """A wave's probes are over, or their deadline has passed: then whatever has not finished has failed.

        Not so if nobody could see at the deadline: how the probes went is not known then, and no node is blamed.

        :raises ApiUnavailable: they are not over by now, either; the next try probes the same nodes again.
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
        """Wave after wave; each wait may defer the task, which :meth:`probed` takes up again."""
        while (wave := progress.wave()) is not None:
            plan, refused = self._create(context, self._plan(chosen, wave), first=not progress.ended)
            if refused is None:
                plan = self._awaited(context, plan)
            self._end_wave(context, chosen, progress, plan, refused)
        return self._publish(context, self._report(context, chosen, progress))

    def _awaited(self, context: Mapping[str, Any], plan: Plan, verdict: Verdict | None = None) -> Plan:
        """Wait until the wave is over; where a user's pod takes a probe's place the others give way at once.

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
            self.log.info("ending the probes on %s: a user's pod has come", ", ".join(sorted(nodes)))
            delete_pods(self.kube, [pod for pod in self._pods(context) if pinned_to(pod) in nodes])
            words = "a user's pod took the place of a probe on node {}; the other probes were ended at once"
            plan = plan.without({node: busy_node(node, words.format(node)) for node in nodes})
        return plan

    def _seen_at_last(self, context: Mapping[str, Any], plan: Plan, blind: Verdict) -> Verdict:
        """One look from here after a deadline that nobody saw pass; returned if the probes are over by now."""
        from gpu_fleet.triggers.looking import look

        found = look("probes_finished", self._gate_args(context, plan), self.access())
        self.log.info("looked at again: %s: %s", found.reason, found.message)
        if found.ready:
            return found
        if found.failed:
            raise found.error()
        raise ApiUnavailable(
            f"the probes of pool {self.node_pool} could not be seen until their deadline ({blind.reason}: "
            f"{blind.message}), and from here it is {found.reason}: {found.message}; no node is judged, and the next "
            "try probes these nodes again",
            reason=blind.reason,
        )

    def _await(self, context: Mapping[str, Any], plan: Plan) -> Verdict:
        args = self._gate_args(context, plan)
        return await_gate(self, context, "probes_finished", args, self.spec.deadlines.validation.seconds, "probed")

    def _gate_args(self, context: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
        return {
            # Those that compute would take the user's time.
            "yields": Probe(self.probe) is Probe.THROUGHPUT and self.this_pool.shared,
            "namespace": self.spec.validation.namespace,
            "selector": self._selector(context),
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

        if refused is None:
            reports = [*plan.unfit, *self._judge(context, chosen, plan)]
        else:
            reason = refusal_reason(refused.message)
            reports = [*plan.unfit, *(refused_node(each.node, reason, refused.message) for each in plan.rounds)]
        progress.end_wave(context, sorted(reports, key=lambda report: report.node))
        # Its GPUs are free again at once, and a cleared task begins afresh instead of finding its old pods.
        delete_pods(self.kube, self._pods(context))

    # --- before a wait -------------------------------------------------------------------------------------------

    def _chosen(self, context: Mapping[str, Any]) -> ChosenNodes:
        try:
            return protected_nodes(self, context)
        except SpecError as error:
            if Probe(self.probe) in MEASURING:
                # Runs whatever happened before; that the nodes were never protected is another task's failure.
                raise AirflowSkipException(error.message) from error
            raise

    def _nodes_left(self, context: Mapping[str, Any], chosen: ChosenNodes) -> list[str]:
        from gpu_fleet.core.probes.plan import diagnosable_gpus

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
            cause = "no container of this pool can ask for all GPUs of a node; see docs/guides/validation.md"
        if cause:
            skipped = {"probe": self.probe, "outcome": "Skipped", "nodes": {}, "failures": []}
            context["ti"].xcom_push(SUMMARY, skipped)
            raise AirflowSkipException(f"probe {self.probe} of pool {self.node_pool}: {cause}")
        return left

    def _plan(self, chosen: ChosenNodes, nodes: Sequence[str]) -> Plan:
        from gpu_fleet.core.probes.plan import plan_round
        from gpu_fleet.core.validation.judge import busy_node
        from gpu_fleet.core.validation.others import NOBODY, others_by_node
        from gpu_fleet.hooks.cluster.pods import pods_on

        probe, physical, replicas = Probe(self.probe), chosen.physical, chosen.replicas
        unfit = unfit_nodes(self, probe, nodes, physical=physical, replicas=replicas)
        others = others_by_node(pods_on(self.kube, nodes))
        rounds = [
            plan_round(
                probe,
                self.spec,
                self.this_pool,
                node,
                slots=physical * replicas,
                held=others.get(node, NOBODY).gpus,
                physical=physical,
            )
            for node in nodes
            if node not in unfit
        ]
        # What measures would take its time from whoever computes there without having asked.
        disturbed = {
            round_.node: busy_node(
                round_.node,
                f"pods see the GPUs of node {round_.node} without having asked for any and may compute on them: "
                + ", ".join(str(each) for each in seeing[:5]),
                "Busy",
            )
            for round_ in rounds
            if probe in MEASURING and (seeing := others.get(round_.node, NOBODY).strangers)
        }
        for report in unfit.values():
            if cause := report.cause:
                self.log.info("%s is not probed: %s: %s", report.node, cause.reason, cause.message)
        return Plan(rounds, list(unfit.values()), self.kube.now()).without(disturbed)

    def _create(self, context: Mapping[str, Any], plan: Plan, *, first: bool) -> tuple[Plan, Forbidden | None]:
        """The wave's pods.

        :returns: the plan without the nodes that could not be freed of earlier probes, and what the API server refused
            the pods for, if it did.
        """
        from gpu_fleet.core.probes.plan import SCRIPTS, is_greedy, is_holder
        from gpu_fleet.core.probes.pods import PodMaker
        from gpu_fleet.hooks.files.templates import include_dir

        if not plan.rounds:
            return plan, None
        maker = PodMaker(
            Probe(self.probe),
            self.spec,
            self.this_pool,
            script=(include_dir() / "probes" / SCRIPTS[Probe(self.probe)]).read_text(),
            run=run_name(context),
            run_label=self.run_label(context),
        )
        try:
            ensure_objects(self.kube, self.spec, "system_namespaces", {self.spec.validation.namespace})
            ensure_objects(self.kube, self.spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
            plan = self._freed(context, plan, maker)
            by_node = [maker.pods(round_) for round_ in plan.rounds]
            pods = [pod for of_node in by_node for pod in of_node]
            if first:
                self.manifests = as_yaml(next(iter(by_node), []))
            # Greedy pods first: they are refused at once, and a filled node would leave no room to try.
            self._create_all(pod for pod in pods if is_greedy(pod))
            if holders := [pod for pod in pods if is_holder(pod)]:
                self._create_all(holders)
                plan = self._held(context, plan, holders)
            nodes = {round_.node for round_ in plan.rounds}
            self._create_all(p for p in pods if not is_greedy(p) and not is_holder(p) and pinned_to(p) in nodes)
        except Forbidden as error:
            return plan, error
        busy = [round_.node for round_ in plan.rounds if round_.busy]
        if busy:
            self.log.info("no free GPU on %s", ", ".join(busy))
        self.log.info("%d probe pod(s) on %d node(s) of pool %s", len(pods), len(plan.rounds), self.node_pool)
        return plan, None

    def _create_all(self, pods: Iterable[dict[str, Any]]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(lambda pod: create_pod(self.kube, pod), pods))

    def _held(self, context: Mapping[str, Any], plan: Plan, holders: Sequence[Mapping[str, Any]]) -> Plan:
        """Waits until the shares that nobody else must use are held.

        A user's pod that comes later preempts the pod that started last (kubernetes pkg/scheduler/util,
        MoreImportantPod, by whole seconds): so what needs the node to itself starts after its holders, and is gone
        before the user's pod is let in.

        :returns: the plan without the nodes where a user's pod was quicker, which are Busy.
        """
        from gpu_fleet.core.probes.plan import holds
        from gpu_fleet.core.validation.judge import busy_node

        wanted = {pod["metadata"]["name"]: pinned_to(pod) for pod in holders}
        deadline = time.monotonic() + HOLD_PATIENCE_S
        while True:
            held = {pod["metadata"]["name"] for pod in self._pods(context) if holds(pod)}
            lacking = {node for name, node in wanted.items() if name not in held}
            if not lacking or time.monotonic() >= deadline:
                break
            time.sleep(HOLD_PAUSE_S)
        time.sleep(STARTS_APART_S)
        message = "the other shares of node {} could not be kept free for {}: a user's pod was quicker"
        return plan.without({node: busy_node(node, message.format(node, self.probe)) for node in lacking})

    def _freed(self, context: Mapping[str, Any], plan: Plan, maker: PodMaker) -> Plan:
        """Removes what earlier probes of the pool have not given back yet: their GPUs count as free in the plan.

        :returns: the plan without the nodes that some of those pods do not leave. One dead kubelet must not take the
            other nodes' verdicts down.
        """
        from gpu_fleet.core.probes.plan import reusable, selector
        from gpu_fleet.core.validation.judge import PROBES_STAY, refused_node

        nodes = {round_.node for round_ in plan.rounds}
        expected = [pod["metadata"]["name"] for round_ in plan.rounds for pod in maker.pods(round_)]
        existing = [pod for pod in self._pods(context) if pinned_to(pod) in nodes]
        kept = {pod["metadata"]["name"] for pod in existing}
        if existing and not reusable(existing, expected):
            self.log.info("removing %d probe pod(s) that an earlier try left half-done", len(existing))
            kept = set()
        patience = float(self.spec.deadlines.cleanup.seconds)
        _, stay = remove_pods(
            self.kube,
            self.spec.validation.namespace,
            selector(self.node_pool),
            patience,
            which=lambda pod: pinned_to(pod) in nodes and pod["metadata"]["name"] not in kept,
        )
        stuck = {}
        for node, names in stay.items():
            message = (
                f"{len(names)} earlier probe pod(s) on node {node} do not end within {patience:.0f} s and may hold its "
                f"GPUs: {', '.join(names[:5])}; a process that hangs in the driver, or a sick kubelet"
            )
            self.log.warning("%s", message)
            stuck[node] = refused_node(node, PROBES_STAY, message)
        return plan.without(stuck)

    # --- after it ------------------------------------------------------------------------------------------------

    def _judge(self, context: Mapping[str, Any], chosen: ChosenNodes, plan: Plan) -> list[NodeReport]:
        from gpu_fleet.core.validation.evidence import evidence_of
        from gpu_fleet.core.validation.judge import judge_node
        from gpu_fleet.core.validation.node import Promise
        from gpu_fleet.core.validation.others import NOBODY, others_by_node
        from gpu_fleet.hooks.cluster.pods import pods_on

        if not plan.rounds:
            return []
        probe, promise = Probe(self.probe), Promise.of(self.spec, self.this_pool)
        facts = {each.name: each for each in look_at_nodes(self, [round_.node for round_ in plan.rounds])}
        pods, events = self._pods(context), self.kube.list(EVENT, self.spec.validation.namespace)
        there = pods_on(self.kube, (round_.node for round_ in plan.rounds))
        others = others_by_node(there, events, plan.since)
        return [
            judge_node(
                probe,
                evidence_of(
                    probe,
                    round_,
                    facts[round_.node],
                    promise,
                    pods,
                    events,
                    physical=chosen.physical,
                    replicas=chosen.replicas,
                    now=self.kube.now(),
                    others=others.get(round_.node, NOBODY),
                ),
            )
            for round_ in plan.rounds
        ]

    def _report(self, context: Mapping[str, Any], chosen: ChosenNodes, progress: Progress) -> PoolReport:
        from gpu_fleet.core.kubernetes.objects import pool_claims
        from gpu_fleet.core.validation.claims import claims_unchanged, told_before
        from gpu_fleet.core.validation.judge import NO_MEMORY_ISOLATION, seen_unasked
        from gpu_fleet.core.validation.report import PoolReport

        reports = tuple(progress.reports(context))
        claims = pool_claims(self.kube.list(NODE_CLAIM, label_selector=self.of_pool()), self.node_pool)
        values = [context["ti"].xcom_pull(task_ids=id_, key=REPORT) for id_ in upstream_tasks(self, RunProbesOperator)]
        check = claims_unchanged(
            chosen,
            claims,
            self._who_may_have_asked([claim for claim in claims if claim.name not in chosen.node_claims]),
            self._claim_events() if {claim.name for claim in claims} != set(chosen.node_claims) else (),
            our_namespaces={self.spec.validation.namespace, SYSTEM_NAMESPACE},
            known=told_before(chosen, [PoolReport.from_json(value) for value in values if value], reports),
        )
        time_sliced = self.this_pool.shared and not self.this_pool.mps
        return PoolReport(
            cluster=self.spec.name,
            pool=self.node_pool,
            probe=self.probe,
            run=run_name(context),
            physical=chosen.physical,
            replicas=chosen.replicas,
            started_at=progress.since,
            finished_at=time.time(),
            nodes=reports,
            pool_checks=(check,) if reports else (),
            notes=((NO_MEMORY_ISOLATION,) if time_sliced else ()) + seen_unasked(reports),
            idle=chosen.idle,
        )

    def _publish(self, context: Mapping[str, Any], report: PoolReport) -> dict[str, Any]:
        from gpu_fleet.core.validation.report import Outcome

        context["ti"].xcom_push(REPORT, report.to_json())
        context["ti"].xcom_push(SUMMARY, report.summary())
        delete_pods(self.kube, self._pods(context))
        self.log.info("%s", report.sentence())
        for node in report.nodes:
            self.log.info("  %s: %s", node.node, node.outcome)
            # Of a large pool whose nodes all pass, one node's checks tell as much as all of them.
            if node.outcome is not Outcome.PASSED or node is report.nodes[0]:
                for check in node.checks:
                    self.log.info("    %s: %s %s: %s", check.name, check.outcome, check.reason, check.message)
        if report.outcome is Outcome.FAILED:
            raise ValidationFailed(report.sentence(), reason=report.failures()[0]["reason"])
        if report.outcome is Outcome.INCONCLUSIVE:
            Progress.forget(context)  # a retry measures again
            raise GateFailed(report.sentence(), reason=report.failures()[0]["reason"])
        return report.summary()

    # --- reading -------------------------------------------------------------------------------------------------

    def _who_may_have_asked(self, added: Sequence[PoolClaim]) -> list[dict[str, Any]]:
        """The pods for which these NodeClaims may have come: those on their nodes, and those that wait for GPUs."""
        from gpu_fleet.core.kubernetes.objects import gpus_requested
        from gpu_fleet.hooks.cluster.pods import pods_on, unbound_pods

        if not added:
            return []
        # First those that wait: one that is bound meanwhile is seen twice rather than never.
        waiting = unbound_pods(self.kube, lambda pod: gpus_requested(pod) > 0)
        return [*waiting, *pods_on(self.kube, (claim.node for claim in added))]

    def _claim_events(self) -> list[dict[str, Any]]:
        """What Karpenter says of pods that wait for a node, and of NodeClaims; the latter have no namespace."""
        from gpu_fleet.core.validation.claims import NOMINATED

        nominated = self.kube.list(EVENT, field_selector=f"reason={NOMINATED}")
        return nominated + self.kube.list(EVENT, "default", field_selector=f"involvedObject.kind={NODE_CLAIM.kind}")

    def _selector(self, context: Mapping[str, Any]) -> str:
        from gpu_fleet.core.probes.plan import selector

        return selector(self.node_pool, Probe(self.probe), self.run_label(context))

    def _pods(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.kube.list(POD, self.spec.validation.namespace, label_selector=self._selector(context))
