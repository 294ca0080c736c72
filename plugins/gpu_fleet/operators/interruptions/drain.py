"""The first task of an interruption: everything that has to happen before the instances end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gpu_fleet.core.drain.actions import Limits
from gpu_fleet.core.drain.drained import Drained, Target
from gpu_fleet.core.drain.records import Outcome, PodRecord
from gpu_fleet.core.drain.rules import DrainRules
from gpu_fleet.core.errors import GpuFleetError, NotFound
from gpu_fleet.core.interruptions.event import Case, Payload, by_instance
from gpu_fleet.core.interruptions.handling import NodePlan, Plan, cause_of, drained_cause
from gpu_fleet.core.interruptions.marks import Mark
from gpu_fleet.core.interruptions.messages import Kind
from gpu_fleet.core.interruptions.planned import PlannedNode
from gpu_fleet.core.interruptions.report import InterruptionReport
from gpu_fleet.core.interruptions.victims import displaced, gpu_seconds, seeds, seen_pods
from gpu_fleet.core.interruptions.ways import ACTED, KARPENTER_PATIENCE_S, Way, may_act_first
from gpu_fleet.core.interruptions.wishes import Wish, signal, wish_of
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, POD, ObjectRef
from gpu_fleet.operators.base import FROZEN_SPEC, FleetOperator, run_name
from gpu_fleet.operators.draining.accounts import keep, kept
from gpu_fleet.operators.interruptions.claiming import RunsOver, claim, finish, look
from gpu_fleet.operators.interruptions.memory import handled, remember
from gpu_fleet.operators.interruptions.removal import remove_nodes
from gpu_fleet.operators.interruptions.rows import cost_of, departed_row, ended_of, node_row, with_departed
from gpu_fleet.operators.interruptions.yielding import await_karpenter
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.operators.spec import FROZEN, freeze

#: XCom keys: the report, and the arguments of the gate ``pods_placed``.
INTERRUPTION, DISPLACED = "interruption", "displaced"
#: XCom key: ``{"at", "nodes"}``: what runs of ``gpu_drain`` are to do later, and when that was found out; see
#: :mod:`gpu_fleet.operators.interruptions.planned`.
PLANNED = "planned"
#: Seconds within which the pods of an instance that ends already are asked to go: nothing can save them, but their
#: controllers start others as soon as the API server knows of the end.
ENDING_S = 10.0
#: Seconds for which evictions that pods have asked for (``gpu-fleet.io/on-rebalance: evict``) are retried: nothing ends
#: at a known moment, and the task must not wait for budgets for long while others are interrupted.
WISHES_S = 120.0


class DrainInterruptedOperator(FleetOperator):
    """Drain the nodes that EC2 is about to take, each before its end, all side by side.

    Which these are follows from the events that started the run and from the marks on the nodes; nodes that another
    live run has taken are left to it. Where Karpenter handles the interruption, it evicts first; what it has not begun
    after a few seconds, and what a PodDisruptionBudget still holds when its grace period has to begin, is ours.
    With a node that has a scheduled change it waits whether Karpenter drains that itself
    (:mod:`gpu_fleet.operators.interruptions.yielding`), once everything that is urgent is done.
    Nothing here waits for another task, nor for the cluster lock: another run may hold that for an hour.

    It pins the run to the spec itself, for the same reason. Safe to repeat: requests name the pods' UIDs, and what was
    asked for is kept over a kill.

    :param cluster: name of the cluster file.
    :returns: the report's figures: ``{"nodes", "pods", "lost", "forced", "pools", "headline"}``; XCom ``interruption``
        has the whole report, ``displaced`` what has to find a place again, ``planned`` what is drained later.
    """

    template_fields = ("cluster",)
    operator_extra_links = (ReportLink(),)
    ui_color = "#fdf0e3"

    def __init__(self, *, cluster: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster

    def prepare(self, context: Mapping[str, Any]) -> None:
        from gpu_fleet.core.spec import parse_cluster
        from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

        store = context["task_state_store"]
        frozen = store.get(FROZEN)
        if not isinstance(frozen, Mapping):
            frozen = freeze(self.cluster, {}, self.log, provisions=False)
            store.set(FROZEN, frozen)
        context["ti"].xcom_push(FROZEN_SPEC, dict(frozen))
        self.spec = parse_cluster(frozen["spec"], where="the spec that this run was pinned to")
        self.kube = KubernetesHook(self.access()).client()

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        run, began = run_name(context), self.kube.now()
        self._targets: set[str] = set()
        payloads, problems = _payloads(context)
        cases = by_instance(payloads)
        plan = self._look(context, cases, run)
        mine, others = claim(self.kube, plan.nodes, run)
        for name, why in others.items():
            self.log.info("node %s is left: %s", name, why)
        for each in mine:
            self.log.info("node %s (%s): %s: %s", each.name, each.notice.kind.value, each.way.value, each.decision.why)
        problems += self._signal(each for each in mine if each.way is Way.SIGNAL)
        there = self._pods_of(each for each in mine if each.way is Way.PLAN)
        drained = self._drain(context, mine, {**_seen(mine, cases), **kept(context)})
        mine = await_karpenter(self.kube, self.spec, mine)
        drained = self._follow(context, mine, there, drained)
        drained = replace(drained, records=with_departed(drained.records, plan.departed, began))
        # Before the removal, which may take a moment per node: what is lost must be known also if this task is killed.
        removed = remove_nodes(self.kube, self.spec, (each.node for each in mine if self._removes(each, began)))
        problems += [f"{name}: {why}" for name, why in finish(self.kube, mine, run).items()]
        causes = [
            cause_of(notice) for notice in (*(each.notice for each in mine), *(one.notice for one in plan.departed))
        ]
        gone = [each.node.instance for each in mine if each.way in ACTED]
        gone += [one.notice.instance for one in plan.departed]
        remember(context, self.cluster, [*causes, *map(drained_cause, gone)], run)
        report = self._report(plan, mine, others, drained, removed, payloads, problems, began)
        return self._tell(context, report, mine, drained)

    # --- steps -------------------------------------------------------------------------------------------------

    def _look(self, context: Mapping[str, Any], cases: Mapping[str, Case], run: str) -> Plan:
        return look(
            self.kube,
            self.spec,
            cases,
            run=run,
            now=self.kube.now(),
            is_over=RunsOver(context),
            reported=lambda: handled(context, self.cluster),
        )

    def _pods_of(self, plans: Iterable[NodePlan]) -> dict[str, Any]:
        """Records of the pods on nodes that Karpenter may drain before this run looks again."""
        from gpu_fleet.hooks.cluster.pods import pods_on

        by_name = {plan.name: plan for plan in plans if may_act_first(plan.notice, plan.node.owner, self.spec)}
        found: dict[str, Any] = {}
        for pod in pods_on(self.kube, by_name) if by_name else ():
            plan = by_name.get(str((pod.get("spec") or {}).get("nodeName") or ""))
            if plan is not None:
                found |= seeds(seen_pods([pod]), plan.name, plan.notice.deadline)
        return found

    def _follow(
        self, context: Mapping[str, Any], mine: Iterable[NodePlan], there: Mapping[str, Any], before: Drained
    ) -> Drained:
        """Watch the nodes that Karpenter has begun to drain since this run began."""
        turned = [plan for plan in mine if plan.way is Way.WATCH and plan.name not in self._targets]
        if not turned:
            return before
        names = {plan.name for plan in turned}
        known = {uid: row for uid, row in there.items() if row["node"] in names}
        records = {**known, **{record.uid: record.to_json() for record in before.records}}
        after = self._drain(context, turned, records)
        return Drained(after.records, {**before.unseen, **after.unseen}, before.seconds + after.seconds)

    def _drain(self, context: Mapping[str, Any], mine: Iterable[NodePlan], records: Mapping[str, Any]) -> Drained:
        from gpu_fleet.operators.draining.drain import drain_nodes

        targets = [target for plan in mine if (target := self._target(plan)) is not None]
        self._targets |= {target.node for target in targets}
        if not targets:
            return Drained([PodRecord.from_json(row) for row in kept(context).values()])
        rules = DrainRules.of(self.spec, self.kube.list_metadata(DAEMON_SET), bare_pods_go=False, now=self.kube.now())
        signalled = {plan.name for plan in mine if plan.way is Way.SIGNAL}
        return drain_nodes(
            self.kube,
            targets,
            rules=rules,
            policy=self.spec.drain,
            records=records,
            on_progress=lambda records: keep(context, records),
            on_change=self._log,
            wanted=lambda pod: (pod.get("spec") or {}).get("nodeName") not in signalled or wish_of(pod) is Wish.EVICT,
        )

    def _target(self, plan: NodePlan) -> Target | None:
        """Until when the node's pods have to be gone, and from when on we evict; by the cluster's clock."""
        now, margin = self.kube.now(), float(self.spec.interruptions.margin)
        match plan.way:
            case Way.DRAIN:
                return Target(plan.name, Limits(deadline=_end(plan, now), margin=margin))
            case Way.WATCH if self._is_far(plan, now):
                # Karpenter drains it now, whenever the instance ends: pods keep the protection that they have.
                return Target(plan.name, Limits(watch=True, end=now + float(self.spec.drain.timeout)))
            case Way.WATCH:
                first = min(now, plan.seen) + KARPENTER_PATIENCE_S
                return Target(plan.name, Limits(deadline=_end(plan, now), margin=margin, evict_from=first))
            case Way.ENDING:
                return Target(plan.name, Limits(deadline=now + ENDING_S, margin=ENDING_S))
            case Way.SIGNAL:
                end = now + min(WISHES_S, float(self.spec.drain.timeout))
                return Target(plan.name, Limits(evict_until=end, end=end))
            case Way.PLAN | Way.NOTE:
                return None

    def _is_far(self, plan: NodePlan, now: float) -> bool:
        """Whether the instance ends so late that nothing has to be forced now."""
        end = plan.notice.deadline
        return plan.notice.kind is Kind.SCHEDULED and (end is None or end - now > float(self.spec.drain.timeout))

    def _removes(self, plan: NodePlan, began: float) -> bool:
        """Not a node that Karpenter drains at its leisure: it may still have pods."""
        return plan.way is Way.DRAIN or (plan.way is Way.WATCH and not self._is_far(plan, began))

    def _signal(self, plans: Iterable[NodePlan]) -> list[str]:
        """Tell the pods that have asked for it."""
        from gpu_fleet.hooks.cluster.pods import pods_on

        by_node = {plan.name: Mark(plan.notice, plan.seen) for plan in plans}
        problems = []
        for pod in pods_on(self.kube, by_node):
            mark = by_node.get(str((pod.get("spec") or {}).get("nodeName") or ""))
            body = signal(pod, mark) if mark is not None and wish_of(pod) is Wish.SIGNAL else None
            if body is None:
                continue
            metadata = pod["metadata"]
            try:
                self.kube.patch(ObjectRef(POD, metadata["name"], metadata["namespace"]), body)
                self.log.info("told pod %s/%s of the risk", metadata["namespace"], metadata["name"])
            except NotFound:
                continue
            except GpuFleetError as error:
                problems.append(f"pod {metadata['namespace']}/{metadata['name']} could not be told: {error.message}")
        return problems

    def _log(self, record: PodRecord) -> None:
        why = f": {record.reason}" if record.reason else ""
        self.log.info("%s %s on %s%s", record.outcome.value, record, record.node, why)

    # --- telling -----------------------------------------------------------------------------------------------

    def _report(
        self,
        plan: Plan,
        mine: Iterable[NodePlan],
        others: Mapping[str, str],
        drained: Drained,
        removed: Mapping[str, str],
        payloads: Iterable[Payload],
        problems: list[str],
        began: float,
    ) -> InterruptionReport:
        records = drained.records
        watched = {each.name for each in mine if each.way is Way.WATCH}
        for record in records:
            if record.outcome is Outcome.GONE and record.node in watched:
                record.reason = record.reason or "it had ended before this run looked: Karpenter evicts at once"
        skipped: dict[str, int] = {}
        for payload in payloads:
            for cause, count in payload.skipped.items():
                skipped[cause] = skipped.get(cause, 0) + count
        over = ended_of(records)
        seconds = gpu_seconds(records, over)
        usd, prices = cost_of(self.spec, [each.node for each in mine], records, over)
        return InterruptionReport(
            cluster=self.spec.name,
            began=began,
            ended=self.kube.now(),
            nodes=[
                *(node_row(each, records, drained.unseen | _unseen(mine, records), removed) for each in mine),
                *(departed_row(each, records, began) for each in plan.departed),
            ],
            pods=[record.to_json() for record in records],
            elsewhere={**plan.elsewhere, **others},
            unknown=plan.unknown,
            skipped=skipped,
            problems=problems,
            gpu_seconds=seconds,
            usd=usd,
            prices=prices,
        )

    def _tell(
        self, context: Mapping[str, Any], report: InterruptionReport, mine: Iterable[NodePlan], drained: Drained
    ) -> dict[str, Any]:
        ti = context["ti"]
        ti.xcom_push(INTERRUPTION, report.to_json())
        announced = {str(node["node"]): float(node["at"]) for node in report.nodes}
        ti.xcom_push(DISPLACED, displaced(drained.records, ended_of(drained.records), announced))
        planned = [
            PlannedNode(each.name, each.node.instance, each.notice.kind, each.notice.deadline).to_json()
            for each in mine
            if each.way is Way.PLAN
        ]
        ti.xcom_push(PLANNED, {"at": report.ended, "nodes": planned})
        level = self.log.warning if report.bad else self.log.info
        level("%s", report.headline())
        return {
            "headline": report.headline(),
            "nodes": len(report.nodes),
            "pods": len(report.pods),
            "forced": len(report.with_outcome("Forced")),
            "lost": len(report.with_outcome("Lost")),
            "pools": report.lost_pools(),
        }


def _seen(mine: Iterable[NodePlan], cases: Mapping[str, Case]) -> dict[str, Any]:
    """Records of the pods that the trigger saw on the nodes that are drained."""
    found: dict[str, Any] = {}
    for plan in mine:
        case = cases.get(plan.node.instance)
        if case is not None and plan.way in ACTED:
            found |= seeds(case.pods, plan.name, plan.notice.deadline)
    return found


def _unseen(mine: Iterable[NodePlan], records: Iterable[PodRecord]) -> dict[str, str]:
    """Nodes that were removed by force, so that their pods had ended before anybody could look."""
    seen = {record.node for record in records}
    forced = (each for each in mine if each.way is Way.ENDING and each.node.forced and each.name not in seen)
    return {each.name: each.decision.why for each in forced}


def _end(plan: NodePlan, now: float) -> float:
    return now if plan.notice.deadline is None else plan.notice.deadline


def _payloads(context: Mapping[str, Any]) -> tuple[list[Payload], list[str]]:
    """The events that started the run; a run that a person started has none."""
    found, problems = [], []
    for events in (context.get("triggering_asset_events") or {}).values():
        for event in events:
            try:
                found.append(Payload.from_json((event.extra or {})["payload"]))
            except (ValueError, KeyError, TypeError) as error:
                problems.append(f"an event that cannot be read: {error}")
    return found, problems
