"""The release engine's acting half: take the Lease, observe, decide, do one thing, observe again.

Helm's exit code is never trusted: storage is read again after every command, and only what it shows counts. Every
method may be killed at any instant and called again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gpu_fleet.core.errors import (
    ClusterBusy,
    DeadlinePassed,
    GateFailed,
    GpuFleetError,
    Invalid,
    ReleaseError,
    TransientError,
)
from gpu_fleet.core.releases.decide import WRITES, Action, Decision, Goal, decide
from gpu_fleet.core.releases.helm_output import complaint, error_of
from gpu_fleet.core.releases.lease import LEASE_SECONDS
from gpu_fleet.core.releases.ledger import Entry, Intent, Ledger
from gpu_fleet.core.releases.objects import crds, readable_manifest, workloads
from gpu_fleet.core.releases.outcome import Outcome
from gpu_fleet.core.releases.request import Drift, ReleaseRequest, Remediation
from gpu_fleet.core.releases.state import Finding, Observation, Reason, classify
from gpu_fleet.core.releases.storage import PENDING, UNFINISHED, ReleaseStatus, StoredRevision, chart_tests
from gpu_fleet.hooks.helm_charts import fetch_chart
from gpu_fleet.hooks.helm_cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm_command import Helm, rollback_arguments, test_arguments, upgrade_arguments, write_values
from gpu_fleet.hooks.helm_drift import find_drift
from gpu_fleet.hooks.helm_lease import ReleaseLease
from gpu_fleet.hooks.helm_preparation import check_rendering, ensure_namespace, unknown_kinds
from gpu_fleet.hooks.helm_process import Finished
from gpu_fleet.hooks.helm_storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes_client import KubeClient

log = logging.getLogger(__name__)

#: Steps of one call; the longest recovery (unlock, upgrade, two deployed, roll back, upgrade) has five.
_MAX_STEPS = 8


class ReleaseEngine:
    """Install, remediate, prove or uninstall one release.

    :param request: what is wanted; for uninstalling only name, namespace and policy matter.
    :param me: identity for the Lease, distinct per process.
    :param run: ``<dag_id>/<run_id>``, for the ledger.
    :param lease_wait_s: seconds to wait for another holder of the Lease.
    :param lease_s: seconds without renewal after which a holder of the Lease counts as dead.
    """

    def __init__(
        self,
        client: KubeClient,
        request: ReleaseRequest,
        *,
        me: str,
        run: str,
        lease_wait_s: float = 120.0,
        lease_s: int = LEASE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client, self.request, self.me, self.run = client, request, me, run
        self.storage = ReleaseStorage(client, request.name, request.namespace, clock=clock)
        self.cleanup = ReleaseCleanup(client, self.storage)
        self._clock = clock
        self._lease_wait_s, self._lease_s = lease_wait_s, lease_s
        self._lease: ReleaseLease | None = None
        self._cancelled = ""
        self._actions: list[str] = []
        self._rendered = ""

    def cancel(self, why: str) -> None:
        """End a running helm soon (from a signal handler: sets a word, does nothing else)."""
        self._cancelled = why

    def _stop(self) -> str:
        return self._cancelled or (self._lease.lost if self._lease is not None else "")

    # --- goals ---------------------------------------------------------------------------------------------------

    def install(self) -> Outcome:
        """Install or upgrade to the wanted content, recovering first what an earlier death left.

        Nothing is written if the wanted content is deployed already and the ledger knows it.

        :raises ReleaseError: the release needs a person.
        :raises ClusterBusy: somebody else is changing it.
        """
        seen, decision = self._look(Goal.INSTALL, drift=True)
        log.log(
            logging.WARNING if seen.drift else logging.INFO,
            "%s is %s: %s",
            self.request,
            decision.state,
            decision.message,
        )
        if decision.action is Action.NOTHING and self._recorded(seen):
            return self._outcome(seen)
        self._refuse(decision)
        chart = fetch_chart(self.request.chart, stop=self._stop)
        with self._helm() as helm:
            values = helm.folder / "values.json"
            write_values(self.request.values, values)
            _ = helm.version
            if decision.action in WRITES:
                self._rendered = check_rendering(self.client, self.request, helm, chart, values)
            ensure_namespace(self.client, self.request)
            with self._leased():
                return self._outcome(self._pursue(Goal.INSTALL, helm, chart, values))

    def remediate(self) -> Outcome:
        """Roll back to the ledger's proven revision; nothing to do if that is what is deployed.

        :raises ReleaseError: no revision was ever proven, it was pruned, or the rollback failed.
        """
        seen = self.storage.observe()
        decision = decide(Goal.REMEDIATE, seen, None, self.request.policy)
        log.info("%s is %s: %s", self.request, decision.state, decision.message)
        if decision.action is Action.NOTHING:
            return self._outcome(seen)
        self._refuse(decision)
        with self._helm() as helm, self._leased():
            _ = helm.version
            return self._outcome(self._pursue(Goal.REMEDIATE, helm, None, None))

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
            return self._outcome(self._record(seen))

    def remedy_unhealthy(self, revision: int, secret_uid: str) -> tuple[str, ...]:
        """The deployed revision does not work: roll back to the proven one, uninstall, or leave it, by policy.

        :param revision: and ``secret_uid``: what was judged; a newer revision is left alone.
        :returns: what was done.
        :raises ReleaseError: the rollback failed, or its target is gone.
        """
        seen = self.storage.observe()
        stored = self._candidate_of(seen)
        if (stored.revision, stored.uid) != (revision, secret_uid) or seen.ledger.candidate_is_proven:
            return ()
        remediation = self.request.policy.remediation
        first = revision == 1 and seen.ledger.proven is None
        if remediation is Remediation.NONE:
            return ()
        if remediation is Remediation.UNINSTALL or first:
            return self.uninstall(keep_kinds=ReleaseCleanup.PRECIOUS).actions
        if seen.ledger.proven is None:
            log.warning("%s: no revision was ever proven, so revision %s is left as it is", self.request, revision)
            return ()
        return self.remediate().actions

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

    def uninstall(self, *, keep_kinds: frozenset[str] = frozenset()) -> Outcome:
        """Uninstall, resume an interrupted uninstall, remove what the release's revisions left, ledger and Lease.

        :param keep_kinds: kinds that stay, such as CustomResourceDefinition.
        :returns: with ``leftovers``: objects of the release that still exist (a finalizer, say) or are kept on purpose.
        """
        seen = self.storage.observe()
        decision = decide(Goal.UNINSTALL, seen, None, self.request.policy)
        log.info("%s is %s: %s", self.request, decision.state, decision.message)
        self._refuse(decision)
        if decision.action is Action.NOTHING and seen.ledger.empty:
            self.cleanup.forget_lease()
            return Outcome(self.request.name, self.request.namespace)
        with self._helm() as helm, self._leased() as lease:
            _ = helm.version
            seen = self.storage.observe(self.request)
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

    def assess(self) -> Finding:
        """What state the release is in, seen from what the ledger says was installed last. Writes nothing."""
        finding = classify(self.storage.observe(), None, adopt=self.request.policy.adopt)
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

    # --- one step after the other --------------------------------------------------------------------------------

    def _pursue(self, goal: Goal, helm: Helm, chart: Path | None, values: Path | None) -> Observation:
        for step in range(_MAX_STEPS):
            self._check_alive()
            # Drift is corrected once: what an upgrade did not put right, another one will not either.
            seen, decision = self._look(goal, drift=step == 0)
            if decision.action is Action.NOTHING:
                return self._record(seen)
            log.info("%s: %s (%s)", decision.action, decision.message, decision.reason)
            self._refuse(decision)
            if decision.action in {Action.INSTALL, Action.UPGRADE}:
                if chart is None or values is None:
                    raise ReleaseError(f"{self.request}: nothing to install while remediating", reason="NoChart")
                self._upgrade(helm, seen, decision, chart, values)
            else:
                self._repair(helm, seen, decision)
        raise ReleaseError(
            f"{self.request}: not settled after {_MAX_STEPS} steps ({', '.join(self._actions)}); look at helm history",
            reason="NotConverging",
        )

    def _look(self, goal: Goal, *, drift: bool) -> tuple[Observation, Decision]:
        """Observe and decide; for drift, which costs two requests per object, only where all else is as wanted."""
        installing = goal is Goal.INSTALL
        wanted, policy = self.request.digest if installing else None, self.request.policy
        seen = self.storage.observe(self.request if installing else None)
        decision = decide(goal, seen, wanted, policy)
        newest = seen.newest
        if not (
            drift and installing and newest and decision.action is Action.NOTHING and policy.drift is not Drift.IGNORE
        ):
            return seen, decision
        manifest = self.storage.manifest(newest)
        found = find_drift(self.client, manifest, self.request.name, self.request.namespace)
        seen = replace(seen, drift=found)
        return seen, decide(goal, seen, wanted, policy)

    def _repair(self, helm: Helm, seen: Observation, decision: Decision) -> None:
        if decision.action is Action.ROLLBACK and decision.target is not None:
            self._rollback(helm, seen, decision.target)
        elif decision.action is Action.UNLOCK and decision.target is not None:
            self.storage.unlock(decision.target)
            self._actions.append(f"unlock {decision.target}")
        elif decision.action is Action.UNINSTALL:
            self._uninstall(helm, seen, ReleaseCleanup.PRECIOUS, "recovery")
        else:
            raise ReleaseError(f"{self.request}: cannot {decision.action}", reason=decision.reason)

    def _upgrade(self, helm: Helm, seen: Observation, decision: Decision, chart: Path, values: Path) -> None:
        expected = seen.newest.revision + 1 if seen.newest is not None else 1
        action = "install" if decision.action is Action.INSTALL else "upgrade"
        what = f"{action} of {self.request} to revision {expected}"
        ledger = self._intend(seen, Intent(action, expected, self.request.digest, self._now(), self.run))
        done = helm.run_in_cluster(
            upgrade_arguments(self.request, chart, values, helm.version, history=self._history(seen)),
            deadline_s=self.request.policy.deadline,
        )
        after = self.storage.observe(self.request)
        if self._made(after, expected, self.request.digest):
            self._actions.append(f"{action} {expected}")
            self._record(replace(after, ledger=ledger))
            self._settle_history(after)
            if self.request.policy.prune:
                self.cleanup.prune_leaked(after)
            return
        error = self._failure(what, done, after)
        log.error("%s", error)
        if after.newest == seen.newest and seen.ledger.intent is None:
            self.storage.write_ledger(replace(ledger, intent=None))  # nothing came of it, so nothing is under way
        self._after_failure(helm, error)
        raise error

    def _after_failure(self, helm: Helm, error: GpuFleetError) -> None:
        """Leave nothing pending and, by policy, the last good content running; the error itself is raised anyway."""
        if self._stop():
            return
        self._explain(error)
        seen = self.storage.observe(self.request)
        decision = decide(Goal.INSTALL, seen, self.request.digest, self.request.policy)
        if decision.action not in {Action.ROLLBACK, Action.UNINSTALL, Action.UNLOCK}:
            return
        if self.request.policy.remediation is Remediation.NONE and decision.action is not Action.UNLOCK:
            return
        log.info("%s: %s (%s)", decision.action, decision.message, decision.reason)
        self._repair(helm, seen, decision)
        if decision.action is Action.ROLLBACK:
            self._record(self.storage.observe())

    def _rollback(self, helm: Helm, seen: Observation, target: int) -> None:
        goal = next(item for item in seen.revisions if item.revision == target)
        expected = seen.revisions[-1].revision + 1
        what = f"rollback of {self.request} to revision {target}"
        intent = Intent("rollback", expected, goal.digest, self._now(), self.run, copy_of=target)
        ledger = self._intend(seen, intent)
        done = helm.run_in_cluster(
            rollback_arguments(self.request, target, helm.version, history=self._history(seen)),
            deadline_s=self.request.policy.deadline,
        )
        after = self.storage.observe()
        if not self._made(after, expected, goal.digest):
            error = self._failure(what, done, after)
            self._explain(error)
            if isinstance(error, TransientError):
                raise error
            raise ReleaseError(
                f"{error.message}; the rollback itself failed: look at the release, no other revision is tried",
                reason="RollbackFailed",
            ) from error
        self._actions.append(f"rollback {target}")
        self._record(replace(after, ledger=ledger), copy_of=target)
        self._settle_history(after)

    def _uninstall(self, helm: Helm, seen: Observation, keep: frozenset[str], why: str) -> None:
        objects = self.cleanup.objects_of(seen)
        newest = seen.revisions[-1]
        intent = Intent("uninstall", newest.revision, newest.digest, self._now(), self.run, objects=objects)
        self._intend(seen, intent)
        self._actions.append(f"uninstall {newest.revision}")
        self.cleanup.uninstall(helm, self.request, newest, keep)
        if why == "recovery":
            self.cleanup.remove_leftovers(objects, keep)

    # --- what storage says ---------------------------------------------------------------------------------------

    def _made(self, after: Observation, expected: int, digest: str) -> bool:
        newest = after.newest
        return (
            newest is not None
            and newest.revision == expected
            and newest.status is ReleaseStatus.DEPLOYED
            and len(after.deployed) == 1
            and newest.digest == digest
        )

    def _failure(self, what: str, done: Finished, after: Observation) -> GpuFleetError:
        """Why a command did not do what was asked: our own doing first, then helm's words, then storage."""
        newest = after.newest
        shown = f"storage shows revision {newest.revision} as {newest.status}" if newest else "storage shows no release"
        if done.ended_by == "deadline":
            return DeadlinePassed(f"{what}: helm ran for {done.seconds:.0f} s, past its deadline; {shown}")
        if self._lease is not None and self._lease.lost:
            return ClusterBusy(f"{what}: {self._lease.lost}; run again", reason="LeaseLost")
        if done.ended_by:
            return TransientError(f"{what}: {done.ended_by}; {shown}", reason="Interrupted")
        if done.code < 0:
            return TransientError(f"{what}: helm was ended by signal {-done.code}; {shown}", reason="HelmKilled")
        if done.code != 0:
            error = error_of(what, done.stderr)
            if error.reason == "CrdMissing" and self._rendered:
                kinds = ", ".join(unknown_kinds(self.client, self._rendered))
                return Invalid(f"{error.message}; the cluster has no kind {kinds}", reason=error.reason)
            return error
        if newest is not None and newest.status in UNFINISHED:
            return TransientError(f"{what}: helm reports success, but {shown}", reason="StorageDisagrees")
        return ReleaseError(
            f"{what}: helm reports success, but {shown} and {len(after.deployed)} deployed revisions; "
            "is this helm the real one, and is nobody else changing the release?",
            reason="StorageDisagrees",
        )

    def _explain(self, error: GpuFleetError) -> None:
        if error.reason in {"HookFailed", "JobFailed"}:
            self.cleanup.explain_hooks(error.message)

    def _recorded(self, seen: Observation) -> bool:
        return seen.newest is not None and seen.candidate == seen.newest and seen.ledger.intent is None

    def _record(self, seen: Observation, copy_of: int | None = None) -> Observation:
        """Make the deployed revision the ledger's candidate, if it is not yet."""
        newest = seen.newest
        if newest is None or newest.status is not ReleaseStatus.DEPLOYED or self._recorded(seen):
            return seen
        intent = seen.ledger.intent
        if copy_of is None and intent is not None and intent.made(newest):
            copy_of = intent.copy_of
        entry = Entry(newest.revision, newest.digest, newest.uid, self._now(), self.run, copy_of)
        known = seen.ledger.candidate
        if known is not None and known.is_revision(newest):
            entry = known
        return replace(seen, ledger=self.storage.write_ledger(seen.ledger.with_candidate(entry)))

    def _settle_history(self, after: Observation) -> None:
        """Helm leaves a revision whose operation died pending for good, also after a rollback over it."""
        for stale in after.revisions[:-1]:
            if stale.status in PENDING:
                self.storage.unlock(stale.revision)

    def _candidate_of(self, seen: Observation) -> StoredRevision:
        stored, newest = seen.candidate, seen.newest
        if stored is None or newest is None or stored.revision != newest.revision or seen.deployed != (newest,):
            found = f"revision {newest.revision} is {newest.status}" if newest else "there is no release"
            known = f"revision {seen.ledger.candidate.revision}" if seen.ledger.candidate else "nothing"
            raise ReleaseError(
                f"{self.request}: the ledger's candidate is {known}, but {found}; install it again before proving it",
                reason="NotTheCandidate",
            )
        return stored

    def _outcome(self, seen: Observation) -> Outcome:
        newest = seen.newest
        if newest is None:
            return Outcome(self.request.name, self.request.namespace, actions=tuple(self._actions))
        manifest = self.storage.manifest(newest)
        return Outcome(
            self.request.name,
            self.request.namespace,
            newest.revision,
            newest.digest,
            newest.uid,
            seen.ledger.candidate_is_proven,
            tuple(self._actions),
            workloads(manifest, self.request.namespace),
            crds(manifest),
            manifest=readable_manifest(manifest),
            history=tuple(f"{item.revision} {item.status}" for item in seen.revisions),
            drift=tuple(str(item) for item in seen.drift or ()),
        )

    # --- small parts ---------------------------------------------------------------------------------------------

    def _helm(self) -> Helm:
        return Helm(self.client.access, stop=self._stop)

    def _leased(self) -> ReleaseLease:
        self._lease = ReleaseLease(
            self.client,
            self.request.name,
            self.request.namespace,
            self.me,
            wait_s=self._lease_wait_s,
            seconds=self._lease_s,
            stop=lambda: self._cancelled,
        )
        return self._lease

    def _check_alive(self) -> None:
        if self._cancelled:
            raise TransientError(f"{self.request}: {self._cancelled}", reason="Interrupted")
        if self._lease is not None and self._lease.lost:
            raise ClusterBusy(f"{self._lease.lost}; run again", reason="LeaseLost")

    def _refuse(self, decision: Decision) -> None:
        if decision.action is Action.STOP:
            raise ReleaseError(decision.message, reason=decision.reason)
        if decision.action is Action.WAIT:
            raise ClusterBusy(f"{decision.message}; run again when it has ended", reason=decision.reason)

    def _intend(self, seen: Observation, intent: Intent) -> Ledger:
        self._check_alive()
        if seen.newest is not None:
            intent = replace(intent, base_revision=seen.newest.revision, base_uid=seen.newest.uid)
        return self.storage.write_ledger(seen.ledger.intending(intent))

    def _history(self, seen: Observation) -> int:
        """``--history-max``: never so few that the proven revision would be pruned by this command or its rollback."""
        proven = seen.proven
        needed = sum(1 for item in seen.revisions if proven is not None and item.revision >= proven.revision) + 2
        return max(self.request.policy.history_max, needed if proven is not None else 0)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
