"""Remediate one of the fleet's own releases: find out whether it is what failed, and roll it back if so."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import GateBlind, GpuFleetError, ReleaseError
from gpu_fleet.operators.base import attempt, task_states
from gpu_fleet.operators.helm.base import UNHEALTHY
from gpu_fleet.operators.helm.releases.base import ReleaseOperator
from gpu_fleet.operators.helm.releases.proof import proof_deadline_s, proof_gate
from gpu_fleet.operators.helm.releases.prove import SEEN_UNHEALTHY, ProveReleaseOperator
from gpu_fleet.operators.preconditions import GIVES_BACK
from gpu_fleet.triggers.looking import look
from gpu_fleet.triggers.waiting import await_gate, conclude, reconsider

if TYPE_CHECKING:
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.core.verdict import Verdict
    from gpu_fleet.hooks.helm.engine import ReleaseEngine

#: Task-state key of a rollback that installs the proven content anew: that content's digest, noted before it is done.
RESTORING = "restoring"


class RemediateReleaseOperator(ReleaseOperator):
    """Rolls the release back to the ledger's proven revision if it is the release that failed.

    Whether it failed is decided by the first of these looks that can tell:

    1. *Storage* (``_by_storage``): no release, or a proven one, needs no remedy; a failed or interrupted operation is
       rolled back. Only a deployed, unproven revision leaves the question open.
    2. *The workloads now* (``_by_workloads``): failed is rolled back. Not ready is rolled back too, if this run's
       proof has already seen it not work: then there is nothing left to wait for.
    3. *The workloads later*: the task defers until they are ready or the deadline passes (``considered``).
    4. *The workloads once more* (``_by_second_look``), before a rollback because of 3: the trigger's report may be old.

    Ready at 2, 3 or 4, or no node that could tell (capacity failed for another cause): nothing is rolled back. If the
    workloads cannot be seen, nothing is rolled back either, and the task fails.

    After a rollback the task waits until the old revision works again (``rolled_back``) and reads storage once more. A
    proven revision that lacks a config entry or a toleration which living nodes carry is no target: its chart version
    and values are installed anew, with those added.

    :raises ReleaseError: no revision was ever proven, or the rollback failed: a person is needed.
    :raises GateBlind: the workloads cannot be seen.
    """

    preconditions = GIVES_BACK

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._open(context)
        return self._by_storage(context, engine) or self._by_workloads(context, engine, engine.candidate())

    # --- is it the release? --------------------------------------------------------------------------------------

    def _by_storage(self, context: Mapping[str, Any], engine: ReleaseEngine) -> dict[str, Any] | None:
        """What storage alone decides; ``None`` if the question is whether the deployed, unproven revision works."""
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.releases.state import Reason

        # Waits for an operation in progress: what it is about to finish must not be rolled back.
        reason = engine.assess(wait=True).reason
        if reason in {Reason.PROVEN, Reason.NOT_PROVEN} and (resumed := self._resumed(context, engine)) is not None:
            return resumed
        if reason in {Reason.NO_RELEASE, Reason.UNINSTALLED, Reason.PROVEN}:
            self.log.info("nothing to remedy: %s", reason)
            return {"remediation": "nothing", "why": str(reason)}
        return None if reason is Reason.NOT_PROVEN else self._roll_back(context, engine)

    def _by_workloads(self, context: Mapping[str, Any], engine: ReleaseEngine, outcome: Outcome) -> dict[str, Any]:
        gate, args = self._gate(outcome)
        verdict = look(gate, args, self.access(), started=self._run_started(context))
        self.log.info("gate %s: %s: %s", gate, verdict.reason, verdict.message)
        if not verdict.ready and not verdict.blind and (verdict.failed or self._proof_failed(context)):
            return self._roll_back(context, engine, outcome)
        try:
            verdict = await_gate(self, context, gate, args, self._deadline_s(), "considered")
        except (*UNHEALTHY, GateBlind) as error:  # it failed between the two looks, or it cannot be seen
            return self._by_second_look(context, engine, outcome, error)
        return self._innocent(verdict)

    def considered(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        """The trigger has reported whether the unproven revision works; before a rollback the worker looks itself."""
        self.prepare(context)
        try:
            return self._innocent(conclude(event))
        except (*UNHEALTHY, GateBlind) as error:
            engine = self._open(context)
            return self._by_storage(context, engine) or self._by_second_look(context, engine, engine.candidate(), error)

    def _by_second_look(
        self, context: Mapping[str, Any], engine: ReleaseEngine, outcome: Outcome, error: GpuFleetError
    ) -> dict[str, Any]:
        """
        :param error: how the wait ended.
        :raises GateBlind: it cannot be seen whether the revision works: nothing is rolled back then.
        """
        gate, args = self._gate(outcome)
        try:
            verdict = reconsider(error, gate, args, self.access(), started=self._run_started(context))
        except UNHEALTHY as confirmed:
            self.log.warning("%s", confirmed)
            return self._roll_back(context, engine, outcome)
        return self._innocent(verdict)

    def _innocent(self, verdict: Verdict) -> dict[str, Any]:
        self.log.info("the release is not what failed: %s", verdict.message)
        return {"remediation": "nothing", "why": verdict.reason, "message": verdict.message}

    def _run_started(self, context: Mapping[str, Any]) -> float:
        """Patience with failing pods counts from the start of the run, not from this look."""
        started = getattr(context.get("dag_run"), "start_date", None)
        return started.timestamp() if started is not None else time.time()

    def _proof_failed(self, context: Mapping[str, Any]) -> bool:
        """Whether this run's proof of the same component has failed already, having seen the workloads.

        A proof that was blind, killed or marked failed by hand has seen nothing: then the wait begins anew.
        """
        ti = context["ti"]
        dag = context.get("dag")
        proofs = [
            task_id
            for task_id in self.upstream_task_ids
            if dag is not None and isinstance(dag.get_task(task_id), ProveReleaseOperator)
        ]
        if not proofs:
            return False
        states = task_states(context, proofs)
        failed = [task_id for task_id in proofs if states.get(task_id) == "failed"]
        return any(ti.xcom_pull(task_ids=task_id, key=SEEN_UNHEALTHY) for task_id in failed)

    # --- roll back -----------------------------------------------------------------------------------------------

    def _roll_back(
        self, context: Mapping[str, Any], engine: ReleaseEngine, judged: Outcome | None = None
    ) -> dict[str, Any]:
        """
        :param judged: the revision whose workloads do not work; ``None`` if storage shows that the release failed.
        """
        from gpu_fleet.core.releases.decide import LACKS_NEEDED

        who = (judged.revision or 0, judged.secret_uid) if judged is not None else None
        restored = False
        try:
            outcome = engine.remediate(judged=who)
        except ReleaseError as error:
            if error.reason != LACKS_NEEDED:
                raise
            self.log.warning("%s; its chart version and values are installed anew, with those added", error.message)
            if (request := engine.restoring(who)) is None:
                outcome = engine.candidate()
            else:
                repair = self._make_engine(context, self.kube, request)
                kept = {"attempt": attempt(context), "digest": repair.wanted_digest()}
                context["task_state_store"].set(RESTORING, kept)
                outcome, restored = repair.install(), True
        self._show(engine.request, outcome)
        self._raise_if_killed()
        if outcome.revision is None:
            return {"remediation": "nothing", "why": "NoRelease"}
        return self._await_old_content(context, engine, outcome, restored=restored)

    def _resumed(self, context: Mapping[str, Any], engine: ReleaseEngine) -> dict[str, Any] | None:
        """Continue with the proven content that an earlier try of this task installed anew, but did not see proven.

        Otherwise it would be found to work, and stay unproven: no target for the next failure.
        """
        kept = context["task_state_store"].get(RESTORING)
        if not isinstance(kept, Mapping) or kept.get("attempt") != attempt(context):
            return None
        outcome = engine.candidate()
        if outcome.digest != kept["digest"]:
            return None
        return self._await_old_content(context, engine, outcome, restored=True)

    def _await_old_content(
        self, context: Mapping[str, Any], engine: ReleaseEngine, outcome: Outcome, *, restored: bool
    ) -> dict[str, Any]:
        """Wait until the workloads of what was proven once work again, then read storage once more."""
        gate, args = self._gate(outcome, every_node=True)
        verdict = await_gate(
            self,
            context,
            gate,
            args,
            self._deadline_s(),
            "rolled_back",
            kwargs={"revision": outcome.revision, "actions": list(outcome.actions), "restored": restored},
        )
        return self._verify(engine, verdict, outcome.revision, list(outcome.actions), restored=restored)

    def rolled_back(
        self,
        context: Mapping[str, Any],
        event: Mapping[str, Any],
        revision: int | None = None,
        actions: list[str] | None = None,
        restored: bool = False,
    ) -> dict[str, Any]:
        """The trigger has reported whether the old content's workloads are ready again."""
        verdict = conclude(event)
        self.prepare(context)
        return self._verify(self._open(context), verdict, revision, actions or [], restored=restored)

    def _verify(
        self,
        engine: ReleaseEngine,
        verdict: Verdict,
        revision: int | None,
        actions: list[str],
        *,
        restored: bool = False,
    ) -> dict[str, Any]:
        """
        :param restored: the revision is new, and was proven by what the verdict saw, if that saw anything.
        """
        from gpu_fleet.core.gates.plugin_proof import PLUGIN_PROVEN

        outcome = engine.candidate()
        if restored and revision in (None, outcome.revision):
            if verdict.reason == PLUGIN_PROVEN:
                outcome = engine.mark_proven(outcome.revision or 0, outcome.secret_uid)
            self.log.info("installed anew with the proven content: %s: %s", verdict.reason, verdict.message)
            found = self._finished(engine, outcome)
            return {**found, "remediation": "restored", "actions": actions, "verdict": verdict.to_json()}
        if revision not in (None, outcome.revision) or not outcome.proven:
            raise ReleaseError(
                f"{engine.request}: rolled back as revision {revision}, but storage shows revision {outcome.revision}; "
                "another run or person is changing the release",
                reason="CandidateChanged",
            )
        self.log.info("rolled back: %s: %s", verdict.reason, verdict.message)
        found = self._finished(engine, outcome)
        return {**found, "remediation": "rollback", "actions": actions, "verdict": verdict.to_json()}

    # --- the gate ------------------------------------------------------------------------------------------------

    def _gate(self, outcome: Outcome, *, every_node: bool = False) -> tuple[str, dict[str, Any]]:
        return proof_gate(self.spec, self.component, outcome, allow_idle=True, every_node=every_node)

    def _deadline_s(self) -> float:
        return proof_deadline_s(self.spec, self.component)
