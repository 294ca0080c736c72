"""Says of pools that an interruption hit that they are not ready, before anybody has to find out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import AssetAlias
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.interruptions.promise import BLOCK_ENDED, NODES_DRAINED, NODES_INTERRUPTED, Loss, loss_of
from gpu_fleet.core.interruptions.report import DRAINED, INTERRUPTED
from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import pool_nodes
from gpu_fleet.core.links import report_path
from gpu_fleet.core.pools import assets as rules
from gpu_fleet.core.pools.assets import PoolState, Topic
from gpu_fleet.operators.base import DRAIN_TASK_ID, FleetOperator, run_name
from gpu_fleet.operators.interruptions.block import ends_a_block
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.operators.validation.publish import pool_assets, pool_state
from gpu_fleet.operators.validation.telling import TOLD, Change, notify_change


class PublishLostOperator(FleetOperator):
    """Emits ``not-ready`` for each pool that was ready and has less than it promised after the drain.

    Fewer nodes than ``wantedNodes``, or none at all; a pool that loses a surplus node stays ready. It becomes ready
    again when a run of ``gpu_restore`` or another one has proven it. The notifiers of ``validation.notify`` are called.

    :param cluster: name of the cluster's spec.
    :param pools: its pools.
    :param by_hand: a person had the nodes drained: the reason is then ``NodesDrained``, not ``NodesInterrupted``; or
        ``CapacityBlockEnded``, if the run was booked for the end of a Capacity Block.
    :returns: ``{"notReady": [pools], "whole": [pools], "restore": [pools]}``; ``restore`` are those that a run of
        ``gpu_restore`` has to look at: all that lost a node.
    """

    operator_extra_links = (ReportLink(),)
    ui_color = "#eaf6e9"

    def __init__(self, *, cluster: str, pools: Iterable[str], by_hand: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.pools = tuple(pools)
        self.deed, self.reason = (DRAINED, NODES_DRAINED) if by_hand else (INTERRUPTED, NODES_INTERRUPTED)
        for pool in self.pools:
            self.inlets.extend(pool_assets(cluster, pool).values())
            self.outlets.append(AssetAlias(rules.alias(cluster, pool)))

    def act(self, context: Mapping[str, Any]) -> dict[str, list[str]]:
        drained = context["ti"].xcom_pull(task_ids=DRAIN_TASK_ID) or {}
        # A node group is no pool: nothing was promised of it.
        lost = {pool: names for pool, names in (drained.get("pools") or {}).items() if pool in self.spec.pool_names}
        if not lost:
            raise AirflowSkipException("no pool of the cluster file lost a node")
        if ends_a_block(context):
            self.reason = BLOCK_ENDED
        losses = [self._loss(pool, names) for pool, names in sorted(lost.items())]
        for loss in losses:
            self.log.info("pool %s: %s", loss.pool, loss.message)
            if loss.broken:
                self._publish(context, loss)
        return {
            "notReady": [loss.pool for loss in losses if loss.broken],
            "whole": [loss.pool for loss in losses if not loss.broken],
            "restore": [loss.pool for loss in losses],
        }

    def _loss(self, pool: str, names: Iterable[str]) -> Loss:
        nodes = self.kube.list(NODE, label_selector=f"{LABEL_NODE_POOL}={pool}")
        return loss_of(self.spec, self.spec.pool(pool), list(names), pool_nodes(nodes, pool), self.deed)

    def _publish(self, context: Mapping[str, Any], loss: Loss) -> None:
        if loss.pool not in self.pools:
            return  # a pool that the file did not have when Airflow read it: there is no outlet for it
        assets = pool_assets(self.cluster, loss.pool)
        was = pool_state(context, assets)
        if was is not PoolState.READY:
            self.log.info("pool %s was %s: nothing to publish", loss.pool, was)
            return
        ti = context["ti"]
        extra = {
            "cluster": self.cluster,
            "pool": loss.pool,
            "outcome": rules.NOT_VALIDATED,
            "reason": self.reason,
            "message": loss.message[:1000],
            "was": str(was),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            # No verdicts on nodes: those that are gone are blamed for nothing.
            "nodes": {},
            "run": run_name(context),
            "report": report_path(ti.dag_id, ti.run_id),
        }
        emit = context["outlet_events"][AssetAlias(rules.alias(self.cluster, loss.pool))]
        emit.add(assets[Topic.NOT_READY], extra=rules.bounded(extra))
        change = Change(self.cluster, loss.pool, was, PoolState.NOT_READY, self.reason, loss.message)
        notify_change(self, context, self.spec.validation.notify, change, key=f"{TOLD}_{loss.pool}")
