"""The release engine's single steps: observe, decide, do one thing, believe only what storage shows afterwards."""

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
    GpuFleetError,
    Invalid,
    ReleaseError,
    TransientError,
)
from gpu_fleet.core.releases.decide import Action, Decision, Goal, decide
from gpu_fleet.core.releases.helm_output import error_of
from gpu_fleet.core.releases.lease import LEASE_SECONDS, TAKEOVER_GRACE_SECONDS
from gpu_fleet.core.releases.ledger import Entry, Intent, Ledger
from gpu_fleet.core.releases.objects import crds, passing, readable_manifest, workloads
from gpu_fleet.core.releases.outcome import Outcome
from gpu_fleet.core.releases.request import Drift, ReleaseRequest, Remediation
from gpu_fleet.core.releases.state import Observation, Reason
from gpu_fleet.core.releases.storage import (
    PENDING,
    UNFINISHED,
    ReleaseStatus,
    StoredRevision,
    fingerprint,
    payload_content,
)
from gpu_fleet.hooks.helm.binary.command import Helm, rollback_arguments, upgrade_arguments
from gpu_fleet.hooks.helm.binary.process import Finished
from gpu_fleet.hooks.helm.causes import cause_of
from gpu_fleet.hooks.helm.charts import declared
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.drift import find_drift
from gpu_fleet.hooks.helm.gone_kinds import mend_stored, refuse_gone_target
from gpu_fleet.hooks.helm.lease import ReleaseLease
from gpu_fleet.hooks.helm.preparation import unknown_kinds
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)

#: Steps of one call; the longest recovery (unlock, upgrade, two deployed, roll back, upgrade) has five.
_MAX_STEPS = 8
#: Seconds that an install waits for what an uninstall has left to go; a retry of the task waits again.
_GONE_SECONDS = 60.0
_GONE_POLL_SECONDS = 1.0


class ReleaseSteps:
    """What the goals of :class:`gpu_fleet.hooks.helm.engine.ReleaseEngine` are made of.

    :param request: what is wanted; for uninstalling only name, namespace and policy matter.
    :param me: identity for the Lease, distinct per process.
    :param run: ``<dag_id>/<run_id>``, for the ledger.
    :param lease_wait_s: seconds to wait for another holder of the Lease.
    :param lease_s: seconds without renewal after which a holder has lost the Lease.
    :param lease_grace_s: seconds after that until its helm is surely dead, and the Lease may be taken.
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
        lease_grace_s: float = TAKEOVER_GRACE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client, self.request, self.me, self.run = client, request, me, run
        self.storage = ReleaseStorage(client, request.name, request.namespace, needed=request.needed, clock=clock)
        self.cleanup = ReleaseCleanup(client, self.storage)
        self._clock = clock
        self._lease_wait_s, self._lease_s, self._lease_grace_s = lease_wait_s, lease_s, lease_grace_s
        self._lease: ReleaseLease | None = None
        self._cancelled = ""
        self._actions: list[str] = []
        self._rendered = ""
        #: Name of the wanted chart as its archive has it; empty until somebody has looked.
        self._chart = ""

    def cancel(self, why: str) -> None:
        """End a running helm soon (from a signal handler: sets a word, does nothing else)."""
        self._cancelled = why

    def _stop(self) -> str:
        return self._cancelled or (self._lease.lost if self._lease is not None else "")

    # --- one step after the other --------------------------------------------------------------------------------

    def _pursue(self, goal: Goal, helm: Helm, chart: Path | None, values: Path | None) -> Observation:
        for step in range(_MAX_STEPS):
            self._check_alive()
            # Drift is corrected once: what an upgrade did not put right, another one will not either.
            seen, decision = self._look(goal, drift=step == 0)
            if decision.action is Action.NOTHING:
                return self._confirm(seen)
            log.info("%s: %s (%s)", decision.action, decision.message, decision.reason)
            self._refuse(decision)
            if step == 0:  # later it is this very call that has brought another one back
                self._refuse_other_chart(seen)
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

    def _first_look(self, goal: Goal, *, drift: bool) -> tuple[Observation, Decision]:
        """A look before the Lease is taken: while somebody else holds it, nothing that storage shows has died.

        Where nothing is to be done, nobody is waited for.
        """
        holder = self.storage.holder(self.me)
        seen, decision = self._look(goal, drift=drift)
        if holder is None or decision.action is Action.NOTHING:
            return seen, decision
        seen = replace(seen, holder=holder)
        wanted = self.request.digest if goal is Goal.INSTALL else None
        return seen, decide(goal, seen, wanted, self.request.policy)

    def _refuse_at_first(self, decision: Decision) -> None:
        """As :meth:`_refuse`, except that the holder of the Lease is waited for: taking it does that."""
        if decision.reason != Reason.HELD:
            self._refuse(decision)

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
        if decision.action is Action.INSTALL:
            self._finish_uninstall(seen)
        mend_stored(self.client, self.storage, (*seen.deployed, seen.newest))
        known = declared(chart)
        content = fingerprint(*known, self.request.values) if known is not None else ""
        intent = Intent(action, expected, self.request.digest, self._now(), self.run, content=content)
        ledger = self._intend(seen, intent)
        done = helm.run_in_cluster(
            upgrade_arguments(self.request, chart, values, helm.version, history=self._history(seen)),
            deadline_s=self.request.policy.deadline,
        )
        after = self.storage.observe(self.request)
        if self._made(after, intent):
            self._actions.append(f"{action} {expected}")
            self._confirm(replace(after, ledger=ledger))
            return
        error = self._with_cause(self._failure(what, done, after), after)
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
        mend_stored(self.client, self.storage, (*seen.deployed, seen.newest))
        refuse_gone_target(self.client, self.storage, goal)
        mend_stored(self.client, self.storage, (goal,))
        payload = self.storage.payload(goal)
        content = payload_content(payload) if payload is not None else ""
        intent = Intent("rollback", expected, goal.digest, self._now(), self.run, copy_of=target, content=content)
        ledger = self._intend(seen, intent)
        done = helm.run_in_cluster(
            rollback_arguments(self.request, target, helm.version, history=self._history(seen)),
            deadline_s=self.request.policy.deadline,
        )
        after = self.storage.observe()
        if not self._made(after, intent):
            error = self._failure(what, done, after)
            self._explain(error)
            if isinstance(error, TransientError):
                raise error
            raise ReleaseError(
                f"{error.message}; the rollback itself failed: look at the release, no other revision is tried",
                reason="RollbackFailed",
            ) from error
        self._actions.append(f"rollback {target}")
        self._confirm(replace(after, ledger=ledger), copy_of=target)

    def _uninstall(self, helm: Helm, seen: Observation, keep: frozenset[str], why: str) -> None:
        newest = seen.revisions[-1]
        mend_stored(self.client, self.storage, (*seen.deployed, newest))
        objects = self.cleanup.objects_of(seen)
        intent = Intent("uninstall", newest.revision, newest.digest, self._now(), self.run, objects=objects)
        self._intend(seen, intent)
        self._actions.append(f"uninstall {newest.revision}")
        self.cleanup.uninstall(helm, self.request, newest, keep)
        if why == "recovery":
            self.cleanup.remove_leftovers(objects, keep)

    def _finish_uninstall(self, seen: Observation) -> None:
        """Remove what an uninstall has left, and wait until it is gone: the ledger still lists it, storage does not.

        Before the install's own intent takes that list's place. Helm would take an object that still waits for its
        finalizers for its own, and lose it afterwards.

        :raises TransientError: an object does not go; the ledger keeps the list, so a retry waits again.
        """
        objects = seen.ledger.intent.objects if seen.ledger.intent is not None else ()
        until = time.monotonic() + min(_GONE_SECONDS, self.request.policy.operation_timeout)
        told = ""
        while True:
            left = self.cleanup.remove_leftovers(objects, ReleaseCleanup.PRECIOUS)
            going = "; ".join(item for item in left if self.cleanup.waiting([item]))
            if not going:
                break
            if going != told:
                log.info("%s waits until what an uninstall has left is gone: %s", self.request, going)
                told = going
            if time.monotonic() > until:
                raise TransientError(
                    f"{self.request}: an uninstall has left objects that are not gone yet: {going}; nothing is "
                    "installed over them: look at what their finalizers wait for, then run again",
                    reason="ObjectsTerminating",
                )
            time.sleep(_GONE_POLL_SECONDS)
            self._check_alive()
        for item in left:
            log.warning("left by an earlier uninstall: %s", item)

    # --- what storage says ---------------------------------------------------------------------------------------

    def _made(self, after: Observation, intent: Intent) -> bool:
        newest = after.newest
        return (
            newest is not None
            and newest.status is ReleaseStatus.DEPLOYED
            and len(after.deployed) == 1
            and intent.made(newest)
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
                named = f"; the cluster has no kind {kinds}" if kinds else ""
                return Invalid(f"{error.message}{named}", reason=error.reason)
            return error
        if newest is not None and newest.status in UNFINISHED:
            return TransientError(f"{what}: helm reports success, but {shown}", reason="StorageDisagrees")
        return ReleaseError(
            f"{what}: helm reports success, but {shown} and {len(after.deployed)} deployed revisions; "
            "is this helm the real one, and is nobody else changing the release?",
            reason="StorageDisagrees",
        )

    def _with_cause(self, error: GpuFleetError, after: Observation) -> GpuFleetError:
        """Helm waited in vain: say what for, out of the objects."""
        if not self.request.policy.wait or after.newest is None or not isinstance(error, DeadlinePassed):
            return error
        manifest = self.storage.manifest(after.newest)
        cause = cause_of(self.client, manifest, self.request.name, self.request.namespace)
        return DeadlinePassed(f"{error.message}; {cause}", reason=error.reason) if cause else error

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
        made = intent is not None and intent.made(newest)
        if copy_of is None and intent is not None and made:
            copy_of = intent.copy_of
        run = intent.run if intent is not None and made else ""
        entry = Entry(newest.revision, newest.digest, newest.uid, self._now(), run, copy_of)
        known = seen.ledger.candidate
        if known is not None and known.is_revision(newest):
            entry = known
        return replace(seen, ledger=self.storage.write_ledger(seen.ledger.with_candidate(entry)))

    def _confirm(self, seen: Observation, copy_of: int | None = None) -> Observation:
        """Clean up after the dead and the failed, then write the candidate into the ledger.

        In this order: whoever dies in between leaves the intent, and the next run cleans up again.
        """
        if self._recorded(seen):
            return seen
        self._settle_history(seen)
        if self.request.policy.prune:
            self.cleanup.prune_leaked(seen)
        return self._record(seen, copy_of)

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
            passing=passing(manifest, self.request.namespace),
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
            grace=self._lease_grace_s,
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

    def _refuse_other_chart(self, seen: Observation) -> None:
        """Not replace another chart's release: two DAGs chose the same name, and this upgrade would delete what the
        other one made. The names are those in the archives: a registry may know a chart under another one.

        :raises ReleaseError: unless it may be adopted.
        """
        newest = seen.newest
        if newest is None or newest.status is ReleaseStatus.UNINSTALLED or self.request.policy.adopt:
            return
        if self._chart and seen.chart and seen.chart != self._chart:
            raise ReleaseError(
                f"{self.request}: revision {newest.revision} is of chart {seen.chart!r}, and chart {self._chart!r} is "
                "wanted; choose another release_name, uninstall the release, or set adopt to replace its chart",
                reason="OtherChart",
            )

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
