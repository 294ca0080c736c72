"""Proves that the GPUs of a pool's nodes work and are shared as promised, disturbing nobody, and tidies up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import Forbidden, GateFailed, NotFound, SpecError, TransientError, ValidationFailed
from gpu_fleet.core.kinds import EVENT, NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.names import ANNOTATION_DO_NOT_DISRUPT, ANNOTATION_PROTECTED_BY
from gpu_fleet.core.probes import Probe
from gpu_fleet.core.verdict import Verdict
from gpu_fleet.operators.apply import as_yaml
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.capacity import (
    PoolOperator,
    create_pod,
    delete_pods,
    ensure_objects,
    hardware,
    placeholders,
    protect_nodes,
)
from gpu_fleet.operators.probing import Plan, Progress, look_at_nodes, unfit_nodes
from gpu_fleet.triggers.looking import await_gate

if TYPE_CHECKING:
    from gpu_fleet.core.capacity_objects import PoolNode
    from gpu_fleet.core.validation_report import NodeReport, PoolReport
    from gpu_fleet.hooks.kubernetes import KubeClient

#: XCom keys of a probe task: the whole report, and what came of it (also after a failure).
REPORT, SUMMARY = "report", "summary"
#: XCom key for what was planned per node of the current wave, which the verdict needs after the wait.
PLAN = "plan"

#: Probes that come after a first one has shown that a node works at all, and the outcomes of that one which leave a
#: node out of them: what is broken need not be measured, and its other nodes must be.
MEASURING = frozenset({Probe.THROUGHPUT, Probe.DCGM})
NOT_MEASURED = frozenset({"Failed", "Inconclusive"})

#: Seconds after which a task that was ended from outside has no process any more: its supervisor hears of it with the
#: next heartbeat, at most every 5 s, and kills it 5 s after its signal (airflow sdk execution_time/supervisor.py).
ENDS_WITHIN_S = 15.0

#: Pods created or deleted at the same time. Enough for a pool of fifty nodes, far below API priority and fairness.
AT_ONCE = 8


class ProtectNodesOperator(PoolOperator):
    """Keeps Karpenter from removing the pool's nodes while they are validated.

    Nodes that somebody else protects already are left as they are, and stay so afterwards. Cordoned nodes take no
    probe, and nodes that have only just joined are not finished: both are left out. Quarantined nodes are looked at by
    a revalidation, which is what releases them; they are none of the nodes that capacity was waited for. The run's
    Param ``node`` leaves out all nodes but one.

    :param all_wanted: fail if fewer than ``wantedNodes`` are left to validate. Without it a pool whose nodes were taken
        away a moment ago is 'Idle', which is right for a revalidation and wrong after capacity was waited for. With it
        surplus nodes with a wrong number of GPUs are left out, as the gate ``pool_capacity`` does.
    Of more nodes than ``validation.nodes.sample`` so many are chosen, others in each run.

    :returns: ``{"nodes", "untested", "nodeClaims", "claims": {NodeClaim: node}, "physical", "replicas", "protected",
        "instances"}``; the NodeClaims are what the end of validation is compared with.
    :raises GateFailed: ``NodesMissing``, see ``all_wanted``.
    """

    changes_cluster = True
    ui_color = "#f6eefb"

    def __init__(self, *, all_wanted: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.all_wanted = all_wanted

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.core.capacity_objects import pool_claims, pool_nodes

        pool = self.this_pool
        gpus = hardware(self.spec, pool)
        present = pool_nodes(self.kube.list(NODE, label_selector=self.of_pool()), pool.name)
        nodes = [node for node in present if self._is_finished(node) and self._takes_probes(node)]
        only = context["params"].get("node")
        if only:
            nodes = [node for node in nodes if node.name == only]
            if not nodes:
                self.log.warning("node %s takes no probes: it is cordoned, or has not been initialized yet", only)
        if self.all_wanted and pool.wanted_nodes:
            good = [node for node in nodes if node.gpus == gpus.count * pool.replicas]
            if len(nodes) > len(good) >= pool.wanted_nodes:
                # Capacity was found sufficient without these; to probe them would fail the pool after all.
                broken = ", ".join(node.name for node in nodes if node not in good)
                self.log.warning("pool %s: left out, wrong number of GPUs: %s; delete them", pool.name, broken)
                nodes = good
        if self.all_wanted and len(nodes) < pool.wanted_nodes:
            raise GateFailed(
                f"pool {pool.name}: {len(nodes)} of {pool.wanted_nodes} wanted node(s) can be validated; nodes were "
                "taken away or cordoned after they had been waited for: start another run",
                reason="NodesMissing",
            )
        nodes, untested = self._sample(context, nodes)
        protected = protect_nodes(self.kube, nodes, run_name(context))
        claims = pool_claims(self.kube.list(NODE_CLAIM, label_selector=self.of_pool()), pool.name)
        self.log.info(
            "pool %s: %d node(s) to validate, %d protected, %d left for other runs",
            *(pool.name, len(nodes), len(protected), len(untested)),
        )
        return {
            "nodes": [node.name for node in nodes],
            "untested": untested,
            "nodeClaims": [claim.name for claim in claims],
            "claims": {claim.name: claim.node for claim in claims if claim.node},
            "physical": gpus.count,
            "replicas": pool.replicas,
            "protected": protected,
            "instances": {node.name: node.instance() for node in nodes},
        }

    def _is_finished(self, node: PoolNode) -> bool:
        """A node that has been Ready for long and is not initialized will not be: that is for a verdict to say."""
        if node.initialized or self.all_wanted:
            return node.initialized
        return node.ready_since is not None and time.time() - node.ready_since > self.spec.deadlines.prove.seconds

    def _sample(self, context: Mapping[str, Any], nodes: list[PoolNode]) -> tuple[list[PoolNode], list[str]]:
        from gpu_fleet.core.waves import sample

        always = [node.name for node in nodes if node.quarantined]
        count = self.spec.validation.nodes.sample
        chosen = set(sample((node.name for node in nodes), count, run_name(context), always))
        return [n for n in nodes if n.name in chosen], [n.name for n in nodes if n.name not in chosen]

    def _takes_probes(self, node: PoolNode) -> bool:
        if node.quarantined:
            return not self.all_wanted
        return not node.cordoned


class RunProbesOperator(PoolOperator):
    """Runs one probe on the protected nodes of a pool, ``validation.nodes.atOnce`` at a time, and gives the verdict.

    ``sharing`` and ``exclusive`` fill every node and include vectorAdd, the pod too many, the distribution over GPUs
    and the refusal of a request for two: one round, one wait. ``vectoradd`` is one pod per node; ``overflow`` the
    refusal alone; ``throughput`` fills every node with processes that compute; ``dcgm`` runs NVIDIA's diagnostics. Only
    GPUs that nobody uses are taken; a node without one is 'Busy'. Nodes that fail before anything was run on them get
    no pods, and those that failed an earlier probe of this run are not measured.

    Nodes are probed in waves; the pods of a wave are gone before the next one begins. A task that was killed goes on
    with the wave that it had come to.

    :param probe: see :class:`gpu_fleet.core.probes.Probe`.
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
        before = self._before(context)
        nodes = self._nodes_left(context, before)
        return self._advance(context, before, Progress.begin(context, nodes, self.spec.validation.nodes.at_once))

    def probed(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        """A wave's probes are over, or their deadline has passed: then whatever has not finished has failed."""
        verdict = Verdict.from_json(event["verdict"])
        self.log.info("%s: %s: %s", event["type"], verdict.reason, verdict.message)
        if verdict.failed:
            raise verdict.error()
        self.prepare(context)
        before, progress = protected_nodes(self, context), Progress.load(context)
        plan = Plan.from_json(context["ti"].xcom_pull(task_ids=self.task_id, key=PLAN))
        self._end_wave(context, before, progress, plan)
        return self._advance(context, before, progress)

    # --- waves ---------------------------------------------------------------------------------------------------

    def _advance(self, context: Mapping[str, Any], before: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Wave after wave; each wait may defer the task, which :meth:`probed` takes up again."""
        while (wave := progress.wave()) is not None:
            plan = self._plan(before, wave)
            refused = self._create(context, plan, first=not progress.ended)
            if refused is None and any(not round_.busy for round_ in plan.rounds):
                context["ti"].xcom_push(PLAN, plan.to_json())
                self._await(context, plan)
            self._end_wave(context, before, progress, plan, refused)
        return self._publish(context, self._report(context, before, progress))

    def _await(self, context: Mapping[str, Any], plan: Plan) -> None:
        args = {
            "namespace": self.spec.validation.namespace,
            "selector": self._selector(context),
            "pool": self.node_pool,
            "rounds": [round_.to_json() for round_ in plan.rounds],
        }
        await_gate(self, context, "probes_finished", args, self.spec.deadlines.validation.seconds, "probed")

    def _end_wave(
        self,
        context: Mapping[str, Any],
        before: Mapping[str, Any],
        progress: Progress,
        plan: Plan,
        refused: Forbidden | None = None,
    ) -> None:
        from gpu_fleet.core.validation import refusal_reason, refused_node

        if refused is None:
            reports = [*plan.unfit, *self._judge(context, before, plan)]
        else:
            reason = refusal_reason(refused.message)
            reports = [*plan.unfit, *(refused_node(each.node, reason, refused.message) for each in plan.rounds)]
        progress.end_wave(context, sorted(reports, key=lambda report: report.node))
        # Its GPUs are free again at once, and a cleared task begins afresh instead of finding its old pods.
        delete_pods(self.kube, self._pods(context))

    # --- before a wait -------------------------------------------------------------------------------------------

    def _before(self, context: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return protected_nodes(self, context)
        except SpecError as error:
            if Probe(self.probe) in MEASURING:
                # Runs whatever happened before; that the nodes were never protected is another task's failure.
                raise AirflowSkipException(error.message) from error
            raise

    def _nodes_left(self, context: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
        from gpu_fleet.core.probes import diagnosable_gpus

        probe, nodes = Probe(self.probe), list(before["nodes"])
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
        elif probe is Probe.DCGM and diagnosable_gpus(self.this_pool, int(before["physical"])) is None:
            cause = "no container of this pool can ask for all GPUs of a node; see docs/guides/validation.md"
        if cause:
            skipped = {"probe": self.probe, "outcome": "Skipped", "nodes": {}, "failures": []}
            context["ti"].xcom_push(SUMMARY, skipped)
            raise AirflowSkipException(f"probe {self.probe} of pool {self.node_pool}: {cause}")
        return left

    def _plan(self, before: Mapping[str, Any], nodes: Sequence[str]) -> Plan:
        from gpu_fleet.core.capacity_objects import gpus_held
        from gpu_fleet.core.probes import plan_round
        from gpu_fleet.core.validation import is_ours

        probe, physical, replicas = Probe(self.probe), int(before["physical"]), int(before["replicas"])
        unfit = unfit_nodes(self, probe, nodes, physical=physical, replicas=replicas)
        held = gpus_held(pod for pod in self.kube.list(POD) if not is_ours(pod))
        rounds = [
            plan_round(
                probe,
                self.spec,
                self.this_pool,
                node,
                slots=physical * replicas,
                held=held.get(node, 0),
                physical=physical,
            )
            for node in nodes
            if node not in unfit
        ]
        for report in unfit.values():
            if cause := report.cause:
                self.log.info("%s is not probed: %s: %s", report.node, cause.reason, cause.message)
        return Plan(rounds, list(unfit.values()), time.time())

    def _create(self, context: Mapping[str, Any], plan: Plan, *, first: bool) -> Forbidden | None:
        """The wave's pods; returns what the API server refused them for, if it did."""
        from gpu_fleet.core.probe_pods import PodMaker
        from gpu_fleet.core.probes import SCRIPTS, is_greedy, pinned_to, reusable, selector
        from gpu_fleet.hooks.templates import include_dir

        if not plan.rounds:
            return None
        maker = PodMaker(
            Probe(self.probe),
            self.spec,
            self.this_pool,
            script=(include_dir() / "probes" / SCRIPTS[Probe(self.probe)]).read_text(),
            run=run_name(context),
            run_label=self.run_label(context),
        )
        by_node = [maker.pods(round_) for round_ in plan.rounds]
        pods = [pod for of_node in by_node for pod in of_node]
        if first:
            self.manifests = as_yaml(next(iter(by_node), []))
        namespace, mine = self.spec.validation.namespace, {round_.node for round_ in plan.rounds}
        try:
            ensure_objects(self.kube, self.spec, "system_namespaces", {namespace})
            existing = [pod for pod in self._pods(context) if pinned_to(pod) in mine]
            if existing and not reusable(existing, [pod["metadata"]["name"] for pod in pods]):
                self.log.info("removing %d probe pod(s) that an earlier try left half-done", len(existing))
                existing = []
            if not existing:
                # Also what an earlier probe of the pool has not given back yet: its GPUs count as free in the plan.
                remove_pods(self.kube, namespace, selector(self.node_pool), float(self.spec.deadlines.cleanup.seconds))
            # Greedy pods first: they are refused at once, and a filled node would leave no room to try.
            for group in ([p for p in pods if is_greedy(p)], [p for p in pods if not is_greedy(p)]):
                with ThreadPoolExecutor(AT_ONCE) as workers:
                    list(workers.map(lambda pod: create_pod(self.kube, pod), group))
        except Forbidden as error:
            return error
        busy = [round_.node for round_ in plan.rounds if round_.busy]
        if busy:
            self.log.info("no free GPU on %s", ", ".join(busy))
        self.log.info("%d probe pod(s) on %d node(s) of pool %s", len(pods), len(plan.rounds), self.node_pool)
        return None

    # --- after it ------------------------------------------------------------------------------------------------

    def _judge(self, context: Mapping[str, Any], before: Mapping[str, Any], plan: Plan) -> list[NodeReport]:
        from gpu_fleet.core.validation import judge_node
        from gpu_fleet.core.validation_evidence import evidence_of
        from gpu_fleet.core.validation_node import Promise

        if not plan.rounds:
            return []
        probe, promise = Probe(self.probe), Promise.of(self.spec, self.this_pool)
        facts = {each.name: each for each in look_at_nodes(self, [round_.node for round_ in plan.rounds])}
        pods, events = self._pods(context), self.kube.list(EVENT, self.spec.validation.namespace)
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
                    physical=int(before["physical"]),
                    replicas=int(before["replicas"]),
                    now=time.time(),
                ),
            )
            for round_ in plan.rounds
        ]

    def _report(self, context: Mapping[str, Any], before: Mapping[str, Any], progress: Progress) -> PoolReport:
        from gpu_fleet.core.validation import (
            NO_MEMORY_ISOLATION,
            asking_for_new_nodes,
            claims_unchanged,
            vanished_nodes,
        )
        from gpu_fleet.core.validation_report import PoolReport

        reports, pods = tuple(progress.reports(context)), self.kube.list(POD)
        claims = [item["metadata"]["name"] for item in self.kube.list(NODE_CLAIM, label_selector=self.of_pool())]
        earlier = [context["ti"].xcom_pull(task_ids=id_, key=REPORT) for id_ in upstream_tasks(self, RunProbesOperator)]
        told = [node for value in earlier if value for node in PoolReport.from_json(value).nodes]
        gone = vanished_nodes([*told, *reports])
        accounted = {claim for claim, node in (before.get("claims") or {}).items() if node in gone}
        check = claims_unchanged(
            before["nodeClaims"], claims, pods, asking_for_new_nodes(pods, before["nodes"]), accounted=accounted
        )
        time_sliced = self.this_pool.shared and not self.this_pool.mps
        return PoolReport(
            cluster=self.spec.name,
            pool=self.node_pool,
            probe=self.probe,
            run=run_name(context),
            physical=int(before["physical"]),
            replicas=int(before["replicas"]),
            started_at=progress.since,
            finished_at=time.time(),
            nodes=reports,
            pool_checks=(check,) if reports else (),
            notes=(NO_MEMORY_ISOLATION,) if time_sliced else (),
        )

    def _publish(self, context: Mapping[str, Any], report: PoolReport) -> dict[str, Any]:
        from gpu_fleet.core.validation_report import Outcome

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

    def _selector(self, context: Mapping[str, Any]) -> str:
        from gpu_fleet.core.probes import selector

        return selector(self.node_pool, Probe(self.probe), self.run_label(context))

    def _pods(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.kube.list(POD, self.spec.validation.namespace, label_selector=self._selector(context))


class CleanUpValidationOperator(PoolOperator):
    """Deletes the pool's probe pods, of whatever run, waits until they are gone, and takes back our protection.

    Placeholders go as well: after a failure before validation they would go on buying and holding nodes.
    Meant to run whatever happened before (trigger rule ``all_done``); harmless to repeat.

    A task that a person ends, or whose run is marked failed, goes on for some seconds, until its supervisor hears of
    it: it may protect nodes and create pods that the first look did not see. So after a task that ended without a
    result everything is looked at twice.

    :returns: ``{"pods": [names deleted], "placeholders": [names deleted], "unprotected": [node names]}``.
    """

    changes_cluster = True
    only_in_turn = True
    ui_color = "#f6eefb"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        found = self._remove()
        if cut_short := self._cut_short(context):
            self.log.info(
                "looking again in %.0f s, when the process of %s is over", ENDS_WITHIN_S, ", ".join(cut_short)
            )
            time.sleep(ENDS_WITHIN_S)
            again = self._remove()
            found = {key: [*names, *again[key]] for key, names in found.items()}
        self.log.info(
            "%d probe pod(s) and %d placeholder(s) removed, %d node(s) unprotected",
            *(len(names) for names in found.values()),
        )
        return found

    def _remove(self) -> dict[str, list[str]]:
        from gpu_fleet.core.probes import selector

        released = delete_pods(self.kube, placeholders(self.kube, self.node_pool))
        unprotected = unprotect_nodes(self.kube, self.of_pool())
        deleted = remove_pods(
            self.kube,
            self.spec.validation.namespace,
            selector(self.node_pool),
            float(self.spec.deadlines.cleanup.seconds),
        )
        return {"pods": deleted, "placeholders": released, "unprotected": unprotected}

    def _cut_short(self, context: Mapping[str, Any]) -> list[str]:
        """The pool's tasks that failed and left nothing behind: no error of their own ended them, it seems."""
        ti = context["ti"]
        leaves = {
            **dict.fromkeys(upstream_tasks(self, ProtectNodesOperator), "return_value"),
            **dict.fromkeys(upstream_tasks(self, RunProbesOperator), SUMMARY),
        }
        if not leaves:
            return []
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=list(leaves), run_ids=[ti.run_id]).get(ti.run_id, {})
        return [
            task_id
            for task_id, key in leaves.items()
            if str(getattr(states.get(task_id), "value", states.get(task_id))) == "failed"
            and ti.xcom_pull(task_ids=task_id, key=key) is None
        ]


def unprotect_nodes(kube: KubeClient, selector: str) -> list[str]:
    """Take back the protection that this package gave; protection by others stays."""
    names = []
    for node in kube.list(NODE, label_selector=selector):
        metadata = node["metadata"]
        if ANNOTATION_PROTECTED_BY in (metadata.get("annotations") or {}):
            body = {"metadata": {"annotations": {ANNOTATION_DO_NOT_DISRUPT: None, ANNOTATION_PROTECTED_BY: None}}}
            try:
                kube.patch(ObjectRef(NODE, metadata["name"]), body)
            except NotFound:
                continue
            names.append(metadata["name"])
    return names


def remove_pods(kube: KubeClient, namespace: str, selector: str, patience_s: float, pause_s: float = 0.25) -> list[str]:
    """Delete pods and wait until they are gone: what is still terminating still holds its GPU.

    :raises TransientError: if some are still there after ``patience_s``.
    """
    deleted: list[str] = []
    deadline = time.monotonic() + patience_s
    while True:
        left = kube.list(POD, namespace, label_selector=selector)
        if not left:
            return deleted
        deleted += delete_pods(kube, [pod for pod in left if not pod["metadata"].get("deletionTimestamp")])
        if time.monotonic() >= deadline:
            names = ", ".join(pod["metadata"]["name"] for pod in left[:5])
            raise TransientError(
                f"{len(left)} probe pod(s) in {namespace} do not go away: {names}; is their node's kubelet alive?",
                reason="ProbesStay",
            )
        time.sleep(pause_s)


def upstream_tasks(operator: PoolOperator, kind: type[PoolOperator]) -> list[str]:
    """Ids of the tasks of a kind, for the same pool, that come before a task; in the DAG's order."""
    before = operator.get_flat_relative_ids(upstream=True)
    tasks = operator.get_dag().tasks if operator.get_dag() is not None else []
    return [
        task.task_id
        for task in tasks
        if task.task_id in before and isinstance(task, kind) and task.node_pool == operator.node_pool
    ]


def protected_nodes(operator: PoolOperator, context: Mapping[str, Any]) -> dict[str, Any]:
    """What the pool's :class:`ProtectNodesOperator` of this run found.

    :raises SpecError: if there is no such task before this one, or it has not succeeded.
    """
    for task_id in upstream_tasks(operator, ProtectNodesOperator):
        value = context["ti"].xcom_pull(task_ids=task_id)
        if isinstance(value, Mapping) and "nodes" in value:
            return dict(value)
    raise SpecError(
        f"task {operator.task_id}: no task before it has protected the nodes of pool {operator.node_pool}",
        field="node_pool",
        remedy="put a ProtectNodesOperator for the same pool before it, and clear that",
    )
