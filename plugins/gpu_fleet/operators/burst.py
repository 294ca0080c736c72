"""Proves on request, before a shared pool's capacity is asked for, that a burst of pods buys no node too many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.names import PLACEHOLDER_PRIORITY_CLASS, SYSTEM_NAMESPACE
from gpu_fleet.operators.base import run_name, wait_started
from gpu_fleet.operators.capacity import (
    RequestCapacityOperator,
    create_pod,
    delete_pods,
    ensure_objects,
    hardware,
    reported_failure,
)
from gpu_fleet.triggers.looking import await_gate, conclude

#: The run's Param that asks for the proof.
PARAM = "proveBurst"
#: XCom and task state: what came of the burst; and since when one is on its way.
BURST, BEGUN = "burst", "burst_begun"


class RequestSharedCapacityOperator(RequestCapacityOperator):
    """Asks for a shared pool's capacity; with the Param ``proveBurst`` only after a burst on the empty pool.

    The burst's pods go in any case, and so do nodes that it bought beyond ``wantedNodes``, unless a user's pod holds a
    GPU there by then. Those within are asked for anyway, and stay.

    :returns: as the base class. The XCom ``burst`` says what came of it: ``{"pods", "nodes"}`` or ``{"skipped": why}``.
    :raises GateRefused: ``BurstBoughtTooMany`` naming how many NodeClaims came, ``BurstBoughtTooFew``.
    :raises DeadlinePassed: if the burst does not run within ``deadlines.capacity``.
    """

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        if not context["params"].get(PARAM):
            return super().act(context)
        from gpu_fleet.core.burst import burst_size, why_not

        pool, physical = self.this_pool, hardware(self.spec, self.this_pool).count
        store = context["task_state_store"]
        present = [
            str(item["metadata"]["name"])
            for kind in (NODE, NODE_CLAIM)
            for item in self.kube.list(kind, label_selector=self.of_pool())
        ]
        # What a killed try of this task has begun is gone on with: its own nodes are no reason to leave it.
        begun = bool(store.get(BEGUN)) and bool(self._pods())
        if reason := why_not(pool, physical, [] if begun else present):
            self.log.warning("no burst on pool %s: %s", pool.name, reason)
            context["ti"].xcom_push(BURST, {"skipped": reason})
            return super().act(context)
        store.set(BEGUN, True)
        pods = burst_size(pool, physical)
        return self._burst(context, pods)

    def _burst(self, context: Mapping[str, Any], pods: int) -> dict[str, Any]:
        from gpu_fleet.core.burst import NODES, burst_pod
        from gpu_fleet.core.capacity import placeholder_lifetime_s

        pool = self.this_pool
        self.log.info("burst on pool %s: %d pods of one share each, which need %d nodes", pool.name, pods, NODES)
        ensure_objects(self.kube, self.spec, "system_namespaces", {SYSTEM_NAMESPACE})
        ensure_objects(self.kube, self.spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
        for index in range(pods):
            manifest = burst_pod(
                self.spec.name,
                pool,
                index,
                lifetime_s=placeholder_lifetime_s(self.spec.deadlines),
                image=self.spec.validation.images.placeholder,
                run=run_name(context),
                run_label=self.run_label(context),
            )
            create_pod(self.kube, manifest)
        seconds, started = float(self.spec.deadlines.capacity), wait_started(context)
        args = {"pool": pool.name, "pods": pods, "most_nodes": NODES}
        try:
            with reported_failure(context):
                verdict = await_gate(
                    self, context, "burst", args, seconds, deadline=started + seconds, started=started,
                    method_name="after_burst",
                )  # fmt: skip
        except GpuFleetError:
            self._clean_up(keep=0)
            raise
        return self._go_on(context, verdict.message, verdict.data)

    def after_burst(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        """When the burst runs, has bought too many nodes, or time is up."""
        from gpu_fleet.operators.turn import keep_turn

        self.prepare(context)
        keep_turn(self, context)
        try:
            with reported_failure(context):
                verdict = conclude(event)
        except GpuFleetError:
            self._clean_up(keep=0)
            raise
        return self._go_on(context, verdict.message, verdict.data)

    def _go_on(self, context: Mapping[str, Any], message: str, data: Mapping[str, Any] | None) -> dict[str, Any]:
        self.log.info("%s", message)
        nodes = list((data or {}).get("nodes", []))
        context["ti"].xcom_push(BURST, {"pods": len(self._pods()), "nodes": nodes})
        self._clean_up(keep=self.this_pool.wanted_nodes)
        return super().act(context)

    def _pods(self) -> list[dict[str, Any]]:
        from gpu_fleet.core.burst import burst_selector

        return self.kube.list(POD, SYSTEM_NAMESPACE, label_selector=burst_selector(self.node_pool))

    def _clean_up(self, *, keep: int) -> None:
        """Remove the pods, and the pool's NodeClaims beyond ``keep``: it was empty, so they are the burst's."""
        from gpu_fleet.core.capacity_objects import pool_claims
        from gpu_fleet.core.validation_others import NOBODY, others_by_node
        from gpu_fleet.hooks.pods import pods_on

        delete_pods(self.kube, self._pods())
        claims = pool_claims(self.kube.list(NODE_CLAIM, label_selector=self.of_pool()), self.node_pool)
        others = others_by_node(pods_on(self.kube, (claim.node for claim in claims[keep:])))
        for claim in claims[keep:]:
            if claim.node and others.get(claim.node, NOBODY).gpus:
                self.log.warning("NodeClaim %s stays: a user's pod holds a GPU on its node %s", claim.name, claim.node)
            elif self.kube.delete(ObjectRef(NODE_CLAIM, claim.name)):
                self.log.info("deleted NodeClaim %s, which the burst had bought", claim.name)
