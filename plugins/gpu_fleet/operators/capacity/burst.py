"""Proves on request, before a shared pool's capacity is requested, that a burst of pods does not buy too many nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core import errors
from gpu_fleet.core.capacity.burst import NODES, Ending, burst_pod, burst_selector, burst_size, surplus, why_not
from gpu_fleet.core.capacity.placeholders import placeholder_lifetime_s
from gpu_fleet.core.errors import Conflict, GpuFleetError, TransientError
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import PLACEHOLDER_PRIORITY_CLASS, SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import deleting, name_of
from gpu_fleet.core.nodes.drifted import describe
from gpu_fleet.operators.base import attempt, run_name, wait_started
from gpu_fleet.operators.capacity import removal
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.locking import keep_lock
from gpu_fleet.operators.manifests import ensure_objects
from gpu_fleet.operators.pods import create_pod, delete_pods
from gpu_fleet.operators.pool import hardware, reported_failure
from gpu_fleet.triggers.waiting import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.core.verdict import Verdict

#: The run's Param that asks for the proof.
PARAM = "proveBurst"
#: XCom key of the burst's result.
BURST = "burst"
#: Task-state keys: that a burst has begun; and how it ends, until the task is cleared: ending it twice is harmless.
BEGUN, ENDING = "burst_begun", "burst_ending"
#: Attempts to delete NodeClaims that change meanwhile; one that launches changes a few times within a second.
LOOKS = 5


class RequestSharedCapacityOperator(RequestCapacityOperator):
    """Requests a shared pool's capacity; with the Param ``proveBurst`` only after a burst on the empty pool.

    The burst's pods are deleted in any case, and so are nodes that it bought beyond ``wantedNodes``, unless by then a
    user's pod holds a GPU there: a node is cordoned, looked at again, and its NodeClaim deleted by UID. Nodes within
    ``wantedNodes`` would be requested anyway, and stay. How the burst ends is noted first: a retry of a killed task
    continues with that, and ends in the same way.

    :returns: as the base class. The XCom ``burst`` has the burst's result: ``{"pods", "nodes"}`` or
        ``{"skipped": why}``.
    :raises GateRefused: ``BurstBoughtTooMany`` with the number of NodeClaims, ``BurstBoughtTooFew``.
    :raises DeadlinePassed: if the burst does not run within ``deadlines.capacity``.
    """

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        if not context["params"].get(PARAM):
            return super().act(context)
        store = context["task_state_store"]
        if noted := store.get(ENDING):
            ending = Ending.from_json(noted["ending"])
            if noted["attempt"] == attempt(context):
                return self._end(context, ending)
            self._remove(context, ending)  # Cleared since: what the burst brought is removed, and all begins anew.
            store.delete(ENDING)
            store.delete(BEGUN)
        pool, physical = self.this_pool, hardware(self.spec, self.this_pool).count
        present = [
            str(item["metadata"]["name"])
            for kind in (NODE, NODE_CLAIM)
            for item in self.kube.list(kind, label_selector=self.of_pool())
        ]
        # A retry of a killed task continues its burst: nodes of that burst are no reason to skip it.
        begun = bool(store.get(BEGUN)) and bool(self._pods())
        if reason := why_not(pool, physical, [] if begun else present):
            self.log.warning("no burst on pool %s: %s", pool.name, reason)
            context["ti"].xcom_push(BURST, {"skipped": reason})
            return super().act(context)
        store.set(BEGUN, True)
        pods = burst_size(pool, physical)
        return self._burst(context, pods)

    def _burst(self, context: Mapping[str, Any], pods: int) -> dict[str, Any]:
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
            verdict = await_gate(
                self, context, "burst", args, seconds, deadline=started + seconds, started=started,
                method_name="after_burst",
            )  # fmt: skip
        except GpuFleetError as error:
            return self._note_and_end(context, keep=0, error=error)
        return self._note_and_end(context, keep=pool.wanted_nodes, verdict=verdict)

    def after_burst(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        """Called when the burst runs, has bought too many nodes, or its deadline has passed."""
        self.prepare(context)
        keep_lock(self, context)
        try:
            verdict = conclude(event)
        except GpuFleetError as error:
            return self._note_and_end(context, keep=0, error=error)
        return self._note_and_end(context, keep=self.this_pool.wanted_nodes, verdict=verdict)

    def _note_and_end(
        self,
        context: Mapping[str, Any],
        *,
        keep: int,
        verdict: Verdict | None = None,
        error: GpuFleetError | None = None,
    ) -> dict[str, Any]:
        if verdict is not None:
            self.log.info("%s", verdict.message)
        ending = Ending(
            keep,
            {name_of(claim): claim["metadata"]["uid"] for claim in self._claims() if not deleting(claim)},
            [str(name) for name in ((verdict.data or {}) if verdict is not None else {}).get("nodes", [])],
            None if error is None else (type(error).__name__, error.reason, error.message),
        )
        context["task_state_store"].set(ENDING, {"attempt": attempt(context), "ending": ending.to_json()})
        return self._end(context, ending)

    def _end(self, context: Mapping[str, Any], ending: Ending) -> dict[str, Any]:
        """Remove what the burst has brought, then request capacity, or fail as the burst did; harmless to repeat."""
        self._remove(context, ending)
        if ending.failure is not None:
            kind, reason, message = ending.failure
            with reported_failure(context):
                raise getattr(errors, kind)(message, reason=reason)
        pods = burst_size(self.this_pool, hardware(self.spec, self.this_pool).count)
        context["ti"].xcom_push(BURST, {"pods": pods, "nodes": list(ending.nodes)})
        return super().act(context)

    def _pods(self) -> list[dict[str, Any]]:
        return self.kube.list(POD, SYSTEM_NAMESPACE, label_selector=burst_selector(self.node_pool))

    def _claims(self) -> list[dict[str, Any]]:
        return self.kube.list(NODE_CLAIM, label_selector=self.of_pool())

    def _remove(self, context: Mapping[str, Any], ending: Ending) -> None:
        """
        :raises TransientError: ``ClaimChanged``: the NodeClaims kept changing.
        """
        delete_pods(self.kube, self._pods())
        if not any(self._remove_surplus(ending, run_name(context)) for _ in range(LOOKS)):
            raise TransientError(
                f"the NodeClaims that the burst on pool {self.node_pool} has bought changed {LOOKS} times while they "
                "were about to be deleted; a retry of the task continues with them",
                reason="ClaimChanged",
            )

    def _remove_surplus(self, ending: Ending, run: str) -> bool:
        """Cordon, look again, delete; ``False`` if a NodeClaim was no longer what had been looked at."""
        cordoned: set[str] = set()
        claims = self._claims()
        for claim in surplus(ending, claims, removal.live_pods(self.kube, claims)):
            node = describe(claim, ()).node
            if not node:
                continue
            if why := removal.cordon(self.kube, node, run):
                self.log.warning("NodeClaim %s stays: its node %s: %s", name_of(claim), node, why.message)
            else:
                cordoned.add(node)
        if cordoned:
            removal.await_scheduler()
        claims = self._claims()
        go = surplus(ending, claims, removal.live_pods(self.kube, claims))
        for node in sorted(cordoned - {describe(claim, ()).node for claim in go}):
            removal.uncordon(self.kube, node, run)
            self.log.warning("node %s stays: it is in use by now, or its NodeClaim no longer exists", node)
        changed = [claim for claim in go if self._may_go(claim, cordoned) and not self._delete(claim)]
        return not changed

    def _may_go(self, claim: Mapping[str, Any], cordoned: set[str]) -> bool:
        return describe(claim, ()).node in {"", *cordoned}

    def _delete(self, claim: Mapping[str, Any]) -> bool:
        metadata = claim["metadata"]
        # Without a node there is nothing to cordon; the version keeps a NodeClaim whose node registers just now.
        version = None if describe(claim, ()).node else metadata["resourceVersion"]
        try:
            there = self.kube.delete(ObjectRef(NODE_CLAIM, metadata["name"]), uid=metadata["uid"], version=version)
        except Conflict:
            return False
        if there:
            self.log.info("deleted NodeClaim %s, which the burst had bought", metadata["name"])
        return True
