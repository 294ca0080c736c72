"""Publishes what came of a pool as asset events, on which users' DAGs are scheduled."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, AssetAlias

from gpu_fleet.core import assets as rules
from gpu_fleet.core.assets import Finding, PoolState, Topic
from gpu_fleet.core.errors import SpecError
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.capacity import FAILURE, AwaitCapacityOperator, PoolOperator
from gpu_fleet.operators.validation import REPORT, SUMMARY, ProtectNodesOperator, RunProbesOperator, upstream_tasks


def pool_assets(cluster: str, pool: str) -> dict[Topic, Asset]:
    """The three assets of a pool, for producers and for consumers' ``schedule=``."""
    return {topic: Asset(rules.uri(cluster, pool, topic)) for topic in Topic}


class PublishPoolOperator(PoolOperator):
    """Emits the events of one pool: at most two of ``ready``, ``validated`` and ``not-ready``, often none.

    Every outlet of a task gets an event when the task succeeds, so concrete outlets cannot be chosen among at run time.
    An asset alias can: it emits what ``execute`` adds to it. The three assets are also inlets, whose past events tell
    whether the pool was ready before.

    To be run whatever happened before (trigger rule ``all_done``); it succeeds also when it has bad news, because only
    a task that succeeds can emit.

    :param cluster: name of the cluster's spec; by default what follows the first dot of the DAG id.
    :param torn_down: the pool was taken down on purpose; nothing is looked up.
    :returns: ``{"pool", "outcome", "reason", "events": [URIs]}``.
    """

    ui_color = "#eaf6e9"
    needs_kube = False
    # A run that never had the cluster's turn has learnt nothing about the pool.
    only_in_turn = True

    def __init__(self, *, cluster: str | None = None, torn_down: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster or self._cluster_of_dag()
        self.torn_down = torn_down
        # A teardown takes down all pools, whichever the run has asked for capacity of.
        self.skips_unselected_pools = not torn_down
        self.inlets.extend(pool_assets(self.cluster, self.node_pool).values())
        self.outlets.append(AssetAlias(rules.alias(self.cluster, self.node_pool)))

    def _cluster_of_dag(self) -> str:
        dag = self.get_dag()
        name = dag.dag_id.partition(".")[2] if dag is not None else ""
        if not name:
            raise SpecError(
                f"task {self.task_id}: the DAG id does not name a cluster", field="cluster", remedy="give cluster="
            )
        return name

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        assets = pool_assets(self.cluster, self.node_pool)
        finding, state = self._finding(context), self._state(context, assets)
        topics = rules.topics_for(finding.outcome, state)
        extra = self._extra(context, finding, state)
        emit = context["outlet_events"][AssetAlias(rules.alias(self.cluster, self.node_pool))]
        for topic in topics:
            emit.add(assets[topic], extra=extra)
        uris = [assets[topic].uri for topic in topics]
        self.log.info(
            "pool %s was %s and is %s (%s: %s): %s",
            self.node_pool,
            state,
            finding.outcome,
            finding.reason,
            finding.message,
            ", ".join(uris) or "no event",
        )
        return {"pool": self.node_pool, "outcome": finding.outcome, "reason": finding.reason, "events": uris}

    def _finding(self, context: Mapping[str, Any]) -> Finding:
        if self.torn_down:
            return Finding(rules.TORN_DOWN, rules.TORN_DOWN, "the pool was taken down on purpose")
        ti = context["ti"]
        summaries = [ti.xcom_pull(task_ids=task, key=SUMMARY) for task in upstream_tasks(self, RunProbesOperator)]
        failures = [ti.xcom_pull(task_ids=task, key=FAILURE) for task in upstream_tasks(self, AwaitCapacityOperator)]
        return rules.finding_of(summaries, next(filter(None, failures), None))

    def _state(self, context: Mapping[str, Any], assets: Mapping[Topic, Asset]) -> PoolState:
        newest: dict[Topic, float | None] = {}
        for topic, asset in assets.items():
            last = list(context["inlet_events"][asset].ascending(False).limit(1))
            newest[topic] = last[0].timestamp.timestamp() if last else None
        return rules.state_after(newest)

    def _extra(self, context: Mapping[str, Any], finding: Finding, state: PoolState) -> dict[str, Any]:
        pool, now, ti = self.this_pool, datetime.now(UTC), context["ti"]
        disruption = pool.disruption.consolidate_after
        seconds = rules.valid_seconds(
            pool.capacity.hold,
            None if disruption.never else disruption.seconds,
            None if pool.expire_after.never else pool.expire_after.seconds,
        )
        nodes: Mapping[str, Any] = {}
        for task in upstream_tasks(self, ProtectNodesOperator):
            nodes = ti.xcom_pull(task_ids=task) or nodes
        names = list(nodes.get("nodes") or [])
        physical, replicas = int(nodes.get("physical") or 0), int(nodes.get("replicas") or pool.replicas)
        return rules.bounded(
            {
                "cluster": self.cluster,
                "pool": pool.name,
                "outcome": finding.outcome,
                "reason": finding.reason,
                "message": finding.message[:1000],
                "was": str(state),
                "at": now.isoformat(timespec="seconds"),
                "validUntil": (now + timedelta(seconds=seconds)).isoformat(timespec="seconds"),
                "nodes": names,
                "gpus": {"physical": physical * len(names), "allocatable": physical * replicas * len(names)},
                "run": run_name(context),
                "reports": [
                    {"dagId": ti.dag_id, "runId": ti.run_id, "taskId": task, "key": REPORT}
                    for task in upstream_tasks(self, RunProbesOperator)
                ],
            }
        )
