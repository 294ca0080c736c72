"""Prove one of the fleet's own releases: the revision that it installed works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpu_fleet.operators.base import wait_started
from gpu_fleet.operators.helm.base import UNHEALTHY
from gpu_fleet.operators.helm.releases.base import ReleaseOperator
from gpu_fleet.operators.helm.releases.proof import proof_deadline_s, proof_gate
from gpu_fleet.triggers.waiting import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.core.verdict import Verdict
    from gpu_fleet.hooks.helm.engine import ReleaseEngine

#: XCom of a proof that failed because the workloads were seen not to work; a proof that failed otherwise leaves none.
SEEN_UNHEALTHY = "seen_unhealthy"


class ProveReleaseOperator(ReleaseOperator):
    """Waits until the installed revision has shown that it works, then writes it into the ledger as proven.

    :raises GateRefused: the workloads cannot become ready; the message names the cause.
    :raises ReleaseError: storage no longer shows the revision that was judged.
    """

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._open(context)
        outcome = engine.candidate()
        gate, args = proof_gate(self.spec, self.component, outcome, allow_idle=False)
        seconds = proof_deadline_s(self.spec, self.component)
        with self._reporting(context):
            verdict = await_gate(
                self,
                context,
                gate,
                args,
                seconds,
                "proven",
                deadline=wait_started(context) + seconds,
                kwargs={"revision": outcome.revision, "secret_uid": outcome.secret_uid},
            )
        return self._mark(engine, verdict, outcome.revision or 0, outcome.secret_uid)

    def proven(
        self, context: Mapping[str, Any], event: Mapping[str, Any], revision: int | None = None, secret_uid: str = ""
    ) -> dict[str, Any]:
        """The trigger has reported that the workloads are ready, or not.

        :param revision: and ``secret_uid``: what was judged. ``dag.test()`` drops a deferral's own arguments; then it
            is the present candidate.
        """
        with self._reporting(context):
            verdict = conclude(event)
        self.prepare(context)
        engine = self._open(context)
        if revision is None:
            outcome = engine.candidate()
            revision, secret_uid = outcome.revision or 0, outcome.secret_uid
        return self._mark(engine, verdict, revision, secret_uid)

    @contextmanager
    def _reporting(self, context: Mapping[str, Any]) -> Iterator[None]:
        """Report to the remediation what was seen. A wait that could not look (GateBlind) has nothing to report."""
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.gates.plugin_proof import NOT_THE_RELEASE

        try:
            yield
        except UNHEALTHY as error:
            # Some reasons are not this revision's fault, also where a wait for one of them to pass has ended.
            if NOT_THE_RELEASE.isdisjoint({error.reason, getattr(error, "waited_for", "")}):
                context["ti"].xcom_push(SEEN_UNHEALTHY, error.message)
            raise

    def _mark(self, engine: ReleaseEngine, verdict: Verdict, revision: int, secret_uid: str) -> dict[str, Any]:
        self._raise_if_killed()
        outcome = engine.mark_proven(revision, secret_uid)
        self.log.info("%s: %s", verdict.reason, verdict.message)
        return {**self._finished(engine, outcome), "verdict": verdict.to_json()}
