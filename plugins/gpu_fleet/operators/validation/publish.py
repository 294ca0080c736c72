"""Publishes the result of a pool as asset events, on which users' DAGs are scheduled."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, AssetAlias

from gpu_fleet.core.capacity.told import climb_brief, climb_sentences
from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.links import report_path
from gpu_fleet.core.nodes.drifted import brief
from gpu_fleet.core.pools import assets as rules
from gpu_fleet.core.pools.assets import Finding, PoolState, Topic
from gpu_fleet.core.validation.chosen import ChosenNodes
from gpu_fleet.core.validation.report import Outcome, PoolReport
from gpu_fleet.operators.base import Preconditions, cluster_of_dag, run_name, tasks_before
from gpu_fleet.operators.capacity.climbing import LADDER
from gpu_fleet.operators.capacity.pre_pull import PrePullImagesOperator
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.drifted import DRIFTED
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.operators.pool import FAILURE, PoolOperator, upstream_tasks
from gpu_fleet.operators.preconditions import HadLock, SelectedPool
from gpu_fleet.operators.validation.holding import HoldCapacityOperator
from gpu_fleet.operators.validation.nodes import LOWER_RUNGS, ProtectNodesOperator
from gpu_fleet.operators.validation.probes import REPORT, SUMMARY, RunProbesOperator
from gpu_fleet.operators.validation.stages import ARRIVALS, record_stages
from gpu_fleet.operators.validation.telling import Change, notify_change

#: XCom key of a remediation task: what was done about nodes that failed.
REMEDIATION = "remediation"
#: XCom key of this task: the result of the pool, for the run's report.
VERDICT = "verdict"
#: Most drifted nodes that an asset event lists; the report has all.
MOST_DRIFTED = 10
#: Most nodes of an older template that an event names; the report has all.
_OLDER_NAMED = 20


def pool_assets(cluster: str, pool: str) -> dict[Topic, Asset]:
    """The three assets of a pool, for producers and for consumers' ``schedule=``."""
    return {topic: Asset(rules.uri(cluster, pool, topic)) for topic in Topic}


def pool_state(context: Mapping[str, Any], assets: Mapping[Topic, Asset]) -> PoolState:
    """What the newest event says about a pool; its three assets must be inlets of the task."""
    newest: dict[Topic, float | None] = {}
    for topic, asset in assets.items():
        last = list(context["inlet_events"][asset].ascending(False).limit(1))
        newest[topic] = last[0].timestamp.timestamp() if last else None
    return rules.state_after(newest)


class PublishPoolOperator(PoolOperator):
    """Emits the events of one pool: at most two of ``ready``, ``validated`` and ``not-ready``, often none.

    Every outlet of a task gets an event when the task succeeds, so concrete outlets cannot be chosen among at run time.
    An asset alias can: it emits what ``execute`` adds to it. The three assets are also inlets, whose past events show
    whether the pool was ready before.

    To be run whatever happened before (trigger rule ``all_done``); it succeeds also when it has bad news, because only
    a task that succeeds can emit.

    When the pool's state changes it also calls the notifiers of ``validation.notify``, each once; one that fails is
    logged and changes nothing. That a pool has no nodes any more notifies none.

    :param cluster: name of the cluster's spec; by default what follows the first dot of the DAG id.
    :param torn_down: the pool was torn down on purpose; nothing is looked up.
    :returns: ``{"pool", "outcome", "reason", "events": [URIs]}``; XCom ``verdict`` has more, for the report.
    """

    operator_extra_links = (ReportLink(),)
    ui_color = "#eaf6e9"
    needs_kube = False
    # A run that never held the cluster lock has learnt nothing about the pool.
    preconditions: Preconditions = (SelectedPool(), HadLock())

    def __init__(self, *, cluster: str | None = None, torn_down: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster or cluster_of_dag(self)
        if not self.cluster:
            raise SpecError(
                f"task {self.task_id}: the DAG id does not name a cluster", field="cluster", remedy="give cluster="
            )
        self.torn_down = torn_down
        # A teardown takes down all pools, whichever the run has asked for capacity of.
        if torn_down:
            self.preconditions = (HadLock(),)
        self.inlets.extend(pool_assets(self.cluster, self.node_pool).values())
        self.outlets.append(AssetAlias(rules.alias(self.cluster, self.node_pool)))

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        assets = pool_assets(self.cluster, self.node_pool)
        reports, remediation = self._reports(context), self._remediation(context)
        chosen, was = self._chosen(context), pool_state(context, assets)
        unproven = rules.still_blamed(chosen.blamed if chosen else (), reports, remediation)
        finding = rules.finding_without(self._finding(context), reports, remediation)
        if was is not PoolState.READY:
            finding = rules.finding_until(finding, unproven)
        one_node = bool(context["params"].get("node"))
        # Only a run that provides capacity has a wait for it.
        looks_only = not self.torn_down and not upstream_tasks(self, AwaitCapacityOperator)
        topics = rules.topics_for(finding.outcome, was, one_node=one_node, unproven=unproven, looks_only=looks_only)
        record_stages(self, context, self._left(context, ARRIVALS), reports, assets[Topic.VALIDATED])
        drifted, climb = self._drifted(context), self._climb(context)
        finding = rules.finding_told(finding, *climb_sentences(climb))
        extra = self._extra(context, finding, was, reports, chosen)
        if drifted:
            extra = rules.bounded({**extra, "drifted": [brief(each) for each in drifted[:MOST_DRIFTED]]})
        if climb:
            extra = rules.bounded({**extra, "ladder": climb_brief(climb)})
        emit = context["outlet_events"][AssetAlias(rules.alias(self.cluster, self.node_pool))]
        for topic in topics:
            emit.add(assets[topic], extra=extra)
        uris = [assets[topic].uri for topic in topics]
        self.log.info(
            "pool %s was %s and is %s (%s: %s): %s",
            self.node_pool,
            was,
            finding.outcome,
            finding.reason,
            finding.message,
            ", ".join(uris) or "no event",
        )
        now = rules.state_now(was, topics)
        verdict = {
            "pool": self.node_pool,
            "outcome": str(finding.outcome),
            "reason": finding.reason,
            "message": finding.message[:2000],
            "was": str(was),
            "now": str(now),
            "events": uris,
            "validUntil": extra.get("validUntil"),
            "without": list(finding.without),
            "older": dict(chosen.drifted) if chosen else {},
            "remediation": remediation,
            "drifted": drifted,
            "ladder": climb,
            "lowerRungs": self._lower_rungs(context),
            **self._pre_pull(context),
        }
        context["ti"].xcom_push(VERDICT, verdict)
        # A pool without nodes is no alarm: the event informs consumers; people are notified when it is ready again.
        if now is not was and finding.outcome != Outcome.IDLE:
            notify_change(
                self,
                context,
                self.spec.validation.notify,
                Change(self.cluster, self.node_pool, was, now, finding.reason, finding.message),
            )
        return {key: verdict[key] for key in ("pool", "outcome", "reason", "events")}

    def _finding(self, context: Mapping[str, Any]) -> Finding:
        if self.torn_down:
            return Finding(rules.TORN_DOWN, rules.TORN_DOWN, "the pool was torn down on purpose")
        ti = context["ti"]
        summaries = [ti.xcom_pull(task_ids=task, key=SUMMARY) for task in upstream_tasks(self, RunProbesOperator)]
        asked = [*upstream_tasks(self, AwaitCapacityOperator), *upstream_tasks(self, RequestCapacityOperator)]
        failures = [ti.xcom_pull(task_ids=task, key=FAILURE) for task in asked]
        finding = rules.finding_of(summaries, next(filter(None, failures), None))
        closed = self._not_opened(context) if finding.outcome == Outcome.PASSED else None
        return Finding(rules.NOT_VALIDATED, str(closed["reason"]), str(closed["message"])) if closed else finding

    def _not_opened(self, context: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What kept proven nodes of a gated pool from being opened: a pool whose nodes take no pods is not ready."""
        for task in tasks_before(self, lambda each: getattr(each, "admits_nodes", False)):
            if self.get_dag().get_task(task).node_pool == self.node_pool:
                return context["ti"].xcom_pull(task_ids=task, key=FAILURE) or None
        return None

    def _reports(self, context: Mapping[str, Any]) -> list[PoolReport]:
        ti = context["ti"]
        values = [ti.xcom_pull(task_ids=task, key=REPORT) for task in upstream_tasks(self, RunProbesOperator)]
        return [PoolReport.from_json(value) for value in values if value]

    def _remediation(self, context: Mapping[str, Any]) -> dict[str, Any] | None:
        # By key and not by class: few tasks lie between the probes and this one, and most runs have none.
        probes = set(upstream_tasks(self, RunProbesOperator))
        for task in upstream_tasks(self, PoolOperator):
            if task not in probes and (value := context["ti"].xcom_pull(task_ids=task, key=REMEDIATION)):
                return dict(value)
        return None

    def _drifted(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The pool's drifted nodes, as seen by the task that chose its nodes."""
        return self._left(context, DRIFTED) or []

    def _left(self, context: Mapping[str, Any], key: str) -> Any:
        """An XCom of the task that chose the pool's nodes."""
        found = None
        for task in upstream_tasks(self, ProtectNodesOperator):
            found = context["ti"].xcom_pull(task_ids=task, key=key) or found
        return found

    def _climb(self, context: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the wait for capacity has tried, in a run that had one, for a pool with a ladder."""
        found = [
            context["ti"].xcom_pull(task_ids=task, key=LADDER) for task in upstream_tasks(self, AwaitCapacityOperator)
        ]
        return next((dict(each) for each in found if each), None)

    def _lower_rungs(self, context: Mapping[str, Any]) -> str:
        """That nodes stand on a lower rung of the ladder, as seen by the task that chose the pool's nodes."""
        return str(self._left(context, LOWER_RUNGS) or "")

    def _pre_pull(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """What the pool's nodes have pulled, and why they have not; nothing where they were to pull nothing."""
        ti = context["ti"]
        for task in upstream_tasks(self, PrePullImagesOperator):
            pulls = (ti.xcom_pull(task_ids=task) or {}).get("pulls") or {}
            failure = ti.xcom_pull(task_ids=task, key=FAILURE) or {}
            if pulls or failure:
                return {"prePull": {"pulls": pulls, "failure": str(failure.get("message", ""))[:1000]}}
        return {}

    def _chosen(self, context: Mapping[str, Any]) -> ChosenNodes | None:
        """What the task that chose the pool's nodes has returned; ``None`` if it has not succeeded."""
        found = None
        for task in upstream_tasks(self, ProtectNodesOperator):
            found = context["ti"].xcom_pull(task_ids=task) or found
        return ChosenNodes.from_json(found) if found else None

    def _extra(
        self,
        context: Mapping[str, Any],
        finding: Finding,
        was: PoolState,
        reports: list[PoolReport],
        chosen: ChosenNodes | None,
    ) -> dict[str, Any]:
        pool, now, ti = self.this_pool, datetime.now(UTC), context["ti"]
        names = list(chosen.nodes) if chosen else []
        physical, replicas = (chosen.physical, chosen.replicas) if chosen else (0, pool.replicas)
        good = len(names) - len(finding.without)
        extra = {
            "cluster": self.cluster,
            "pool": pool.name,
            "outcome": finding.outcome,
            "reason": finding.reason,
            "message": finding.message[:1000],
            "was": str(was),
            "at": now.isoformat(timespec="seconds"),
            "nodes": rules.node_verdicts(names, reports),
            "gpus": {"physical": physical * good, "allocatable": physical * replicas * good},
            "run": run_name(context),
            "report": report_path(ti.dag_id, ti.run_id),
            "reports": [
                {"dagId": ti.dag_id, "runId": ti.run_id, "taskId": task, "key": REPORT}
                for task in upstream_tasks(self, RunProbesOperator)
            ],
        }
        if finding.without:
            extra["without"] = list(finding.without)
        if chosen and chosen.drifted:
            extra["older"] = sorted(chosen.drifted)[:_OLDER_NAMED]
        if finding.outcome == Outcome.PASSED:
            until = now + timedelta(seconds=self._valid_s(context))
            if self.this_pool.capacity_block is not None:
                extra["capacityBlock"], stops = self._block()
                until = min(until, datetime.fromtimestamp(stops, UTC)) if stops is not None else until
            extra["validUntil"] = until.isoformat(timespec="seconds")
        return rules.bounded(extra)

    def _block(self) -> tuple[dict[str, Any], float | None]:
        """The pool's Capacity Block for the event, and when the pool stops, epoch seconds; ``None`` if that is unknown:
        what was proven is published in any case."""
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.errors import GpuFleetError
        from gpu_fleet.core.reservations.calendar import ending, next_ending
        from gpu_fleet.hooks.aws.reservations import reservations_of

        pool, now = self.this_pool, datetime.now(UTC).timestamp()
        try:
            found = reservations_of(self.spec, pool)
        except GpuFleetError as error:
            self.log.warning("when the Capacity Block of pool %s ends is not known: %s", pool.name, error)
            return {"unknown": error.message[:200]}, None
        block = next_ending(found, pool.capacity_block, now) if pool.capacity_block is not None else None
        if block is None or block.end is None or pool.capacity_block is None:
            return {"unknown": "no block of the pool has yet to end"}, None
        end = ending(pool.capacity_block, block.end)
        moments = {"stops": end.stops, "ends": end.ends}
        return {
            "reservation": block.id,
            **{name: datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for name, at in moments.items()},
        }, end.stops

    def _valid_s(self, context: Mapping[str, Any]) -> int:
        disruption, expire = self.this_pool.disruption.consolidate_after, self.this_pool.expire_after
        # A revalidation holds no capacity, and ends what was held on the nodes that it probes.
        holds = upstream_tasks(self, HoldCapacityOperator)
        held = any(context["ti"].xcom_pull(task_ids=task) for task in holds)
        return rules.valid_seconds(
            self.this_pool.capacity.hold if held else 0,
            None if disruption.never else disruption.seconds,
            None if expire.never else expire.seconds,
        )
