"""The release engine's acting half: take the Lease, observe, decide, do one thing, observe again.

Helm's exit code is never trusted: storage is read again after every command, and only what it shows counts. Every
method may be killed at any instant and called again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpu_fleet.core.errors import (
    ClusterBusy,
    DeadlinePassed,
    GateFailed,
    Invalid,
    ReleaseError,
    TransientError,
)
from gpu_fleet.core.releases.components import restored_request
from gpu_fleet.core.releases.decide import PRUNED, WRITES, Action, Goal, decide
from gpu_fleet.core.releases.helm_output import complaint
from gpu_fleet.core.releases.outcome import Outcome
from gpu_fleet.core.releases.request import ChartRef, ReleaseRequest, Remediation, content_digest
from gpu_fleet.core.releases.state import Finding, Observation, Reason, classify
from gpu_fleet.core.releases.storage import ReleaseStatus, chart_tests
from gpu_fleet.hooks.helm.binary.command import test_arguments, write_values
from gpu_fleet.hooks.helm.charts import declared, fetch_chart, identified, sha256_of
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.preparation import check_rendering, ensure_namespace
from gpu_fleet.hooks.helm.steps import ReleaseSteps

log = logging.getLogger(__name__)

#: Number of a revision and UID of its Secret: what was judged.
Judged = tuple[int, str]


class ReleaseEngine(ReleaseSteps):
    """Install, remediate, prove or uninstall one release.

    :param request: what is wanted; for uninstalling only name, namespace and policy matter.
    :param me: identity for the Lease, distinct per process.
    :param run: ``<dag_id>/<run_id>``, for the ledger.
    :param lease_wait_s: seconds to wait for another holder of the Lease.
    :param lease_s: seconds without renewal after which a holder has lost the Lease.
    :param lease_grace_s: seconds after that until its helm is surely dead, and the Lease may be taken.
    """

    # --- goals ---------------------------------------------------------------------------------------------------

    def wanted_digest(self) -> str:
        """The content digest that :meth:`install` will record."""
        return replace(self.request, chart=identified(self.request.chart)).digest

    def install(self) -> Outcome:
        """Install or upgrade to the wanted content, recovering first what an earlier death left.

        Nothing is written if the wanted content is deployed already and the ledger knows it.

        :raises ReleaseError: the release needs a person.
        :raises ClusterBusy: somebody else is changing it.
        """
        self.request = replace(self.request, chart=identified(self.request.chart))
        seen, decision = self._first_look(Goal.INSTALL, drift=True)
        log.log(
            logging.WARNING if seen.drift else logging.INFO,
            "%s is %s: %s",
            self.request,
            decision.state,
            decision.message,
        )
        if decision.action is Action.NOTHING and self._recorded(seen):
            return self._outcome(seen)
        self._refuse_at_first(decision)
        chart = fetch_chart(self.request.chart, stop=self._stop)
        self._chart = (declared(chart) or ("", ""))[0]
        if seen.holder is None:
            self._refuse_other_chart(seen)
        with self._helm() as helm:
            values = helm.folder / "values.json"
            write_values(self.request.values, values)
            _ = helm.version
            if decision.action in WRITES or seen.holder is not None:
                self._rendered = check_rendering(self.client, self.request, helm, chart, values)
            ensure_namespace(self.client, self.request)
            with self._leased():
                return self._outcome(self._pursue(Goal.INSTALL, helm, chart, values))

    def remediate(self, *, judged: Judged | None = None) -> Outcome:
        """Roll back to the ledger's proven revision; nothing to do if that is what is deployed.

        :param judged: the revision that was found not to work; any other one is left alone. ``None``: what storage
            shows when this is called.
        :raises ReleaseError: no revision was ever proven, it was pruned, or the rollback failed.
        :raises ClusterBusy: somebody else is changing the release, or has changed it while the Lease was waited for.
        """
        first, decision = self._first_look(Goal.REMEDIATE, drift=False)
        log.info("%s is %s: %s", self.request, decision.state, decision.message)
        if decision.action is Action.NOTHING:
            return self._outcome(first)
        self._refuse_at_first(decision)
        with self._helm() as helm, self._leased():
            _ = helm.version
            seen = self.storage.observe()
            if judged is None:
                self._refuse_change(first, seen)
            elif not self._stands(seen, judged):
                return self._outcome(seen)
            return self._outcome(self._pursue(Goal.REMEDIATE, helm, None, None))

    def restoring(self, judged: Judged | None) -> ReleaseRequest | None:
        """What to install in place of a rollback whose target lacks what lives: the proven revision's chart version and
        values, with what is needed added.

        :param judged: see :meth:`remediate`; ``None`` is returned if it is no longer what is deployed.
        :raises ReleaseError: the proven revision is gone, or its chart version is another archive now.
        """
        seen = self.storage.observe()
        if judged is not None and not self._stands(seen, judged):
            return None
        entry, stored = seen.ledger.proven, seen.proven
        payload = self.storage.payload(stored) if stored is not None else None
        if payload is None or entry is None:
            raise ReleaseError(f"{self.request}: its proven revision is no longer in Helm's history", reason=PRUNED)
        request = restored_request(self.request, payload)
        chart = self._as_proven(request.chart, payload.get("config") or {}, entry.digest)
        return replace(request, chart=chart)

    def _as_proven(self, chart: ChartRef, values: Mapping[str, Any], digest: str) -> ChartRef:
        """The chart with the archive's digest that it was pinned to when it was proven, found from the content digest.

        :raises ReleaseError: charts are pinned, and that version is another archive now.
        """
        if not chart.repository:
            return self.request.chart
        if content_digest(chart, values) == digest:
            return chart  # it was not pinned then
        pinned = replace(chart, digest=sha256_of(fetch_chart(chart, stop=self._stop)))
        if content_digest(pinned, values) == digest:
            return pinned
        if not self.request.chart.digest:
            log.warning("%s: whether chart %s is the archive that was proven cannot be told", self.request, chart)
            return chart
        raise ReleaseError(
            f"{self.request}: chart {chart} is not the archive that was proven, and charts are locked to "
            "their digests: find out who replaced it, or correct devicePlugin in the cluster file and run again",
            reason="OtherArchive",
        )

    def roll_back(self, revision: int) -> Outcome:
        """Roll back to one named revision; nothing to do if its copy, or it itself, is what is deployed.

        :raises ReleaseError: it is not stored any more, it failed, or the release is not ours.
        """
        seen = self._rollback_target(self.storage.observe(), revision)
        if self._shows(seen, revision) and self._recorded(seen):
            return self._outcome(seen)
        with self._helm() as helm, self._leased():
            _ = helm.version
            seen = self._rollback_target(self.storage.observe(), revision)
            if not self._shows(seen, revision):
                self._rollback(helm, seen, revision)
                seen = self.storage.observe()
            return self._outcome(self._confirm(seen))

    def remedy_unhealthy(self, revision: int, secret_uid: str) -> tuple[str, ...]:
        """The deployed revision does not work: roll back to the proven one, uninstall, or leave it, by policy.

        Only what this very run has installed is uninstalled: what was there before may serve in spite of one bad pod.

        :param revision: and ``secret_uid``: what was judged; a newer revision is left alone.
        :returns: what was done.
        :raises ReleaseError: the rollback failed, or its target is gone.
        """
        judged = revision, secret_uid
        seen = self.storage.observe()
        remediation = self.request.policy.remediation
        if remediation is Remediation.NONE or not self._stands(seen, judged):
            return ()
        first = revision == 1 and seen.ledger.proven is None
        if remediation is Remediation.UNINSTALL or first:
            candidate = seen.ledger.candidate
            if candidate is None or not self.run or candidate.run != self.run:
                log.warning(
                    "%s: revision %s was not made by this run and may have served since: it is left as it is; "
                    "uninstall it by hand if it is of no use",
                    self.request,
                    revision,
                )
                return ()
            return self.uninstall(keep_kinds=ReleaseCleanup.PRECIOUS, judged=judged).actions
        if seen.ledger.proven is None:
            log.warning("%s: no revision was ever proven, so revision %s is left as it is", self.request, revision)
            return ()
        return self.remediate(judged=judged).actions

    def _stands(self, seen: Observation, judged: Judged) -> bool:
        """Whether what was judged is still what is deployed, and nobody has proven it meanwhile.

        Asked again while the Lease is held: whoever held it before may have installed something newer.
        """
        newest = seen.newest
        stands = (
            newest is not None
            and newest == seen.candidate
            and seen.deployed == (newest,)
            and (newest.revision, newest.uid) == judged
            and not seen.ledger.candidate_is_proven
        )
        if not stands:
            found = f"revision {newest.revision} is {newest.status}" if newest is not None else "there is no release"
            log.warning("%s: revision %s was judged, and now %s; that is left alone", self.request, judged[0], found)
        return stands

    def _refuse_change(self, first: Observation, seen: Observation) -> None:
        """
        :raises ClusterBusy: what was to be undone is no longer what storage shows: whoever held the Lease has finished.
        """
        before, now = ((o.newest.revision, o.newest.uid, o.newest.status) if o.newest else None for o in (first, seen))
        if before == now:
            return
        found = f"revision {now[0]} is {now[2]}" if now is not None else "there is no release"
        raise ClusterBusy(
            f"{self.request}: another one has changed it while its Lease was waited for, and now {found}; that is left "
            "alone: run again to look at it anew",
            reason="ReleaseChanged",
        )

    def _rollback_target(self, seen: Observation, revision: int) -> Observation:
        """The same observation, if the rollback may be done."""
        finding = classify(seen, None, adopt=self.request.policy.adopt)
        if finding.reason in {Reason.HELD, Reason.IN_PROGRESS}:
            raise ClusterBusy(f"{finding.message}; run again when it has ended", reason=finding.reason)
        if finding.reason in {Reason.NOT_OURS, Reason.FOREIGN_REVISION, Reason.UNREADABLE}:
            raise ReleaseError(finding.message, reason=finding.reason)
        target = next((item for item in seen.revisions if item.revision == revision), None)
        if target is None:
            kept = ", ".join(str(item.revision) for item in seen.revisions) or "none"
            raise ReleaseError(
                f"{self.request}: revision {revision} is not in Helm's history ({kept}); name one that is",
                reason="TargetPruned",
            )
        if target.status not in {ReleaseStatus.DEPLOYED, ReleaseStatus.SUPERSEDED}:
            raise ReleaseError(
                f"{self.request}: revision {revision} is {target.status}, it never was in force; name another one",
                reason="TargetFailed",
            )
        return seen

    def _shows(self, seen: Observation, revision: int) -> bool:
        """Whether what is deployed is that revision or our copy of it."""
        newest, candidate = seen.newest, seen.candidate
        if newest is None or seen.deployed != (newest,):
            return False
        copied = candidate == newest and seen.ledger.candidate is not None and seen.ledger.candidate.copy_of == revision
        return newest.revision == revision or copied

    def test(self) -> Outcome:
        """Run the chart's tests and believe only what storage says about them.

        :raises GateFailed: a test failed, or was not run; its log is in the task's log.
        :raises ReleaseError: the candidate is not what is deployed.
        """
        with self._helm() as helm, self._leased():
            stored = self._candidate_of(self.storage.observe())
            before = chart_tests(self.storage.payload(stored) or {})
            if not before:
                raise Invalid(f"{self.request}: the chart has no tests (no hook 'test')", reason="NoTests")
            _ = helm.version
            done = helm.run_in_cluster(test_arguments(self.request), deadline_s=self.request.policy.deadline)
            after = chart_tests(self.storage.payload(stored) or {})
            failed = sorted(name for name, run in after.items() if run.phase != "Succeeded" or run == before.get(name))
            for name in failed:
                self.cleanup.log_of_pod(name)
            what = f"tests of {self.request}"
            if done.ended_by == "deadline":
                raise DeadlinePassed(f"{what}: helm ran for {done.seconds:.0f} s, past its deadline")
            if done.ended_by or done.code < 0:
                raise TransientError(f"{what}: {done.ended_by or 'helm was killed'}", reason="Interrupted")
            if failed:
                raise GateFailed(
                    f"{what}: {', '.join(failed)} did not succeed: {complaint(done.stderr) or 'helm says nothing'}",
                    reason="TestFailed",
                )
            self._actions.append(f"test {stored.revision}")
            return self._outcome(self.storage.observe())

    def uninstall(self, *, keep_kinds: frozenset[str] = frozenset(), judged: Judged | None = None) -> Outcome:
        """Uninstall, resume an interrupted uninstall, remove what the release's revisions left, ledger and Lease.

        :param keep_kinds: kinds that stay, such as CustomResourceDefinition.
        :param judged: the revision that was found not to work; any other one is left alone.
        :returns: with ``leftovers``: objects of the release that still exist (a finalizer, say) or are kept on purpose.
        """
        seen, decision = self._first_look(Goal.UNINSTALL, drift=False)
        log.info("%s is %s: %s", self.request, decision.state, decision.message)
        self._refuse_at_first(decision)
        if decision.action is Action.NOTHING and seen.ledger.empty and self.cleanup.forget_lease(self.me):
            return Outcome(self.request.name, self.request.namespace)
        with self._helm() as helm, self._leased() as lease:
            _ = helm.version
            seen = self.storage.observe(self.request)
            if judged is not None and not self._stands(seen, judged):
                return self._outcome(seen)
            decision = decide(Goal.UNINSTALL, seen, None, self.request.policy)
            self._refuse(decision)
            if decision.action is Action.UNINSTALL:
                self._uninstall(helm, seen, keep_kinds, "uninstall")
            ledger = self.storage.ledger()
            objects = ledger.intent.objects if ledger.intent is not None else ()
            leftovers = self.cleanup.remove_leftovers(objects, keep_kinds)
            leftovers += self.cleanup.remaining_pods(objects)
            if not self.cleanup.waiting(leftovers):
                self.storage.delete_ledger()
                lease.forget()
            return Outcome(self.request.name, self.request.namespace, actions=tuple(self._actions), leftovers=leftovers)

    def assess(self, *, wait: bool = False) -> Finding:
        """What state the release is in, seen from what the ledger says was installed last. Changes nothing of it.

        :param wait: take the Lease if somebody holds it, so that what is seen is no operation under way.
        :raises ClusterBusy: with ``wait``: the holder goes on for longer than ``lease_wait_s``.
        """
        seen = self.storage.observe(me=self.me)
        if wait and seen.holder is not None:
            log.info("%s is being changed by %s; waiting", self.request, seen.holder)
            with self._leased():
                seen = self.storage.observe()
            self._lease = None  # given back: it is no loss when it runs out
        finding = classify(seen, None, adopt=self.request.policy.adopt)
        log.info("%s is %s: %s", self.request, finding.state, finding.message)
        return finding

    def candidate(self) -> Outcome:
        """The ledger's candidate, if it is what storage shows as the only deployed, newest revision.

        :raises ReleaseError: if it is not: whatever was observed of the workloads proves nothing then.
        """
        seen = self.storage.observe()
        self._candidate_of(seen)
        return self._outcome(seen)

    def mark_proven(self, revision: int, secret_uid: str) -> Outcome:
        """Write into the ledger that the candidate is good; nothing if the ledger says so already.

        :param revision: and ``secret_uid``: the revision whose workloads were judged.
        :raises ReleaseError: if the candidate is no longer that revision, or storage shows another one.
        """
        seen = self.storage.observe()
        stored = self._candidate_of(seen)
        if (stored.revision, stored.uid) != (revision, secret_uid):
            raise ReleaseError(
                f"{self.request}: revision {revision} was judged, but revision {stored.revision} is the candidate now; "
                "clear the install task and run again",
                reason="CandidateChanged",
            )
        if not seen.ledger.candidate_is_proven:
            seen = replace(seen, ledger=self.storage.write_ledger(seen.ledger.with_proven(self._now(), self.run)))
            log.info("%s: revision %s is proven", self.request, revision)
        return self._outcome(seen)
