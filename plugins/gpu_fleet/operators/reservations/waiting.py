"""Waits until the Capacity Blocks of the run's pools have begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.operators.base import FleetOperator, wait_started
from gpu_fleet.operators.spec import selected_pools
from gpu_fleet.triggers.waiting import await_gate, conclude


class AwaitBlocksOperator(FleetOperator):
    """Wait until a Capacity Block of each pool with ``capacityBlock`` has begun, if the run asks for its nodes.

    It comes before the cluster lock, and is deferred: other runs of the cluster are not held up, and no worker is
    taken.

    :returns: the gate's verdict as JSON, with ``data.blocks``: pool -> its block.
    :raises GateRefused: ``CapacityBlockTooFar``, ``CapacityBlockEnding``, ``CapacityBlockOver`` or
        ``CapacityBlockNotFound``: waiting does not help.
    :raises DeadlinePassed: EC2 has not delivered a block in ``capacityBlock.wait``.
    """

    needs_kube = False
    ui_color = "#e8f3f1"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        selected = selected_pools(context["params"].get("pools"), self.spec.pool_names)
        waiting = {
            pool.name: {
                "terms": [term.model_dump(mode="json", by_alias=True) for term in self.spec.reservations(pool)],
                "block": block.model_dump(mode="json", by_alias=True),
            }
            for pool in self.spec.node_pools
            if pool.name in selected and pool.wanted_nodes and (block := pool.capacity_block) is not None
        }
        if not waiting:
            raise AirflowSkipException("this run asks for no node of a pool with a Capacity Block")
        blocks = [pool.capacity_block for pool in self.spec.node_pools if pool.name in waiting]
        seconds = max(float(block.wait) for block in blocks if block is not None)
        until = wait_started(context) + seconds
        verdict = await_gate(
            self, context, "capacity_blocks", {"pools": waiting, "until": until}, seconds, deadline=until
        )
        return verdict.to_json()

    def execute_complete(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        del context
        verdict = conclude(event)
        self.log.info("%s: %s", verdict.reason, verdict.message)
        return verdict.to_json()
