"""The release engine: observe, decide, run the next action, until nothing is left to do.

Helm's exit code is never trusted: storage is read again after every command, and only what it shows counts. Every
method may be killed at any instant and called again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from gpu_fleet.core.errors import ReleaseError
from gpu_fleet.core.releases.decide import WRITES, Action, Goal, decide
from gpu_fleet.core.releases.guards import (
    Judged,
    candidate_of,
    overtaken,
    refuse,
    refuse_before_lease,
    refuse_change,
    refuse_other_candidate,
    refuse_other_chart,
    refuse_rollback,
    shows_revision,
)
from gpu_fleet.core.releases.lease import LEASE_SECONDS, TAKEOVER_GRACE_SECONDS
from gpu_fleet.core.releases.ledger import rfc3339
from gpu_fleet.core.releases.outcome import Outcome, outcome_of
from gpu_fleet.core.releases.request import ReleaseRequest, Remediation
from gpu_fleet.core.releases.state import Finding, Observation, classify
from gpu_fleet.hooks.helm.actions.base import ActionContext
from gpu_fleet.hooks.helm.actions.record import record
from gpu_fleet.hooks.helm.actions.rollback import Rollback
from gpu_fleet.hooks.helm.actions.run_tests import RunTests
from gpu_fleet.hooks.helm.actions.table import action_of
from gpu_fleet.hooks.helm.actions.uninstall import Uninstall
from gpu_fleet.hooks.helm.charts.archives import declared, fetch_chart, identified
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.lease import forget_free_lease
from gpu_fleet.hooks.helm.looking import first_look, look
from gpu_fleet.hooks.helm.preparation import Package, package_of
from gpu_fleet.hooks.helm.restoring import restoring_request
from gpu_fleet.hooks.helm.session import ReleaseSession
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)

#: Actions of one call; the longest recovery (unlock, upgrade, two deployed, roll back, upgrade) has five.
_MAX_STEPS = 8
#: Actions that follow a failed install or upgrade in the same call.
_RECOVERIES = frozenset({Action.ROLLBACK, Action.UNINSTALL, Action.UNLOCK})


class ReleaseEngine:
    """Install, remediate, prove or uninstall one release.

    :param request: what is wanted; for uninstalling only name, namespace and policy matter.
    :param me: identity for the Lease, distinct per process.
    :param run: ``<dag_id>/<run_id>``, for the ledger.
    :param lease_wait_s: seconds to wait for another holder of the Lease.
    :param lease_s: seconds without renewal after which a holder has lost the Lease.
    :param lease_grace_s: seconds after that until its helm is surely dead, and the Lease may be taken.
    :param clock: wall clock, epoch seconds; injected by tests.
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
        self.client, self.request = client, request
        self.storage = ReleaseStorage(client, request.name, request.namespace, needed=request.needed, clock=clock)
        self._session = ReleaseSession(
            client,
            self.storage,
            me=me,
            run=run,
            wait_s=lease_wait_s,
            seconds=lease_s,
            grace_s=lease_grace_s,
            clock=clock,
        )

    def cancel(self, why: str) -> None:
        """End a running helm soon. Safe in a signal handler: it only sets a word."""
        self._session.cancel(why)

    # --- install -------------------------------------------------------------------------------------------------

    def wanted_digest(self) -> str:
        """The content digest that :meth:`install` will record."""
        return replace(self.request, chart=identified(self.request.chart)).digest

    def install(self) -> Outcome:
        """Install or upgrade to the wanted content, recovering first what an earlier death left.

        Nothing is written if the wanted content is deployed already and the ledger knows it.

        :raises ReleaseError: the release needs a person.
        :raises ClusterBusy: another run or person is changing it.
        """
        self.request = replace(self.request, chart=identified(self.request.chart))
        seen, decision = first_look(self.storage, self.request, Goal.INSTALL, self._session.me)
        level = logging.WARNING if seen.drift else logging.INFO
        log.log(level, "%s is %s: %s", self.request, decision.state, decision.message)
        if decision.action is Action.NOTHING and seen.recorded:
            return self._outcome(seen)
        refuse_before_lease(decision)
        chart = fetch_chart(self.request.chart, stop=self._session.stopped)
        if seen.holder is None:
            refuse_other_chart(seen, self.request, (declared(chart) or ("", ""))[0])
        with self._session.helm() as helm:
            will_render = decision.action in WRITES or seen.holder is not None
            package = package_of(self.client, self.request, helm, chart, render=will_render)
            with self._session.acting(helm, self.request) as here:
                return self._outcome(self._pursue(here, Goal.INSTALL, package))

    # --- undo ----------------------------------------------------------------------------------------------------

    def remediate(self, *, judged: Judged | None = None) -> Outcome:
        """Roll back to the ledger's proven revision; nothing to do if that is what is deployed.

        :param judged: the revision that was found not to work; any other one is left alone. ``None``: what storage
            shows when this is called.
        :raises ReleaseError: no revision was ever proven, it was pruned, or the rollback failed.
        :raises ClusterBusy: the release is being changed, or was changed while this call waited for its Lease.
        """
        first, decision = first_look(self.storage, self.request, Goal.REMEDIATE, self._session.me)
        log.info("%s is %s: %s", self.request, decision.state, decision.message)
        if decision.action is Action.NOTHING:
            return self._outcome(first)
        refuse_before_lease(decision)
        with self._acting() as here:
            seen = self.storage.observe()
            if judged is None:
                refuse_change(first, seen)
            elif not self._still_judged(seen, judged):
                return self._outcome(seen)
            return self._outcome(self._pursue(here, Goal.REMEDIATE, None))

    def restoring(self, judged: Judged | None) -> ReleaseRequest | None:
        """What to install instead of a rollback whose target lacks what living nodes need: the proven revision's chart
        version and values, with those needs added.

        :param judged: see :meth:`remediate`; ``None`` is returned if it is no longer what is deployed.
        :raises ReleaseError: the proven revision is gone, or its chart version is another archive now.
        """
        seen = self.storage.observe()
        if judged is not None and not self._still_judged(seen, judged):
            return None
        return restoring_request(self.storage, self.request, seen, self._session.stopped)

    def roll_back(self, revision: int) -> Outcome:
        """Roll back to one named revision; nothing to do if it, or its copy, is what is deployed.

        :raises ReleaseError: it is no longer stored, it failed, or the release is not ours.
        """
        seen = self.storage.observe()
        refuse_rollback(seen, self.request, revision)
        if shows_revision(seen, revision) and seen.recorded:
            return self._outcome(seen)
        with self._acting() as here:
            seen = self.storage.observe()
            refuse_rollback(seen, self.request, revision)
            if not shows_revision(seen, revision):
                Rollback(revision).run(here, seen)
                seen = self.storage.observe()
            return self._outcome(record(here, seen))

    def remedy_unhealthy(self, revision: int, secret_uid: str) -> tuple[str, ...]:
        """The deployed revision does not work: roll back to the proven one, uninstall, or leave it, by policy.

        Only what this very run has installed is uninstalled: an older release may serve in spite of one bad pod.

        :param revision: and ``secret_uid``: what was judged; a newer revision is left alone.
        :returns: what was done.
        :raises ReleaseError: the rollback failed, or its target is gone.
        """
        judged = revision, secret_uid
        seen = self.storage.observe()
        remediation = self.request.policy.remediation
        if remediation is Remediation.NONE or not self._still_judged(seen, judged):
            return ()
        first = revision == 1 and seen.ledger.proven is None
        if remediation is Remediation.UNINSTALL or first:
            candidate, run = seen.ledger.candidate, self._session.run
            if candidate is None or not run or candidate.run != run:
                log.warning(
                    "%s: revision %s was not made by this run and may be in use: it is left as it is; "
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

    def uninstall(self, *, keep_kinds: frozenset[str] = frozenset(), judged: Judged | None = None) -> Outcome:
        """Uninstall, resume an interrupted uninstall, remove what the release's revisions left, ledger and Lease.

        :param keep_kinds: kinds that stay, such as CustomResourceDefinition.
        :param judged: the revision that was found not to work; any other one is left alone.
        :returns: with ``leftovers``: objects of the release that are still being deleted, or are kept on purpose.
        """
        seen, decision = first_look(self.storage, self.request, Goal.UNINSTALL, self._session.me)
        log.info("%s is %s: %s", self.request, decision.state, decision.message)
        refuse_before_lease(decision)
        name, namespace = self.request.name, self.request.namespace
        if (
            decision.action is Action.NOTHING
            and seen.ledger.empty
            and forget_free_lease(self.client, name, namespace, self._session.me)
        ):
            return Outcome(name, namespace)
        with self._acting() as here:
            seen = self.storage.observe(self.request)
            if judged is not None and not self._still_judged(seen, judged):
                return self._outcome(seen)
            decision = decide(Goal.UNINSTALL, seen, None, self.request.policy)
            refuse(decision)
            if decision.action is Action.UNINSTALL:
                Uninstall(keep_kinds, sweep=False).run(here, seen)
            intent = self.storage.ledger().intent
            objects = intent.objects if intent is not None else ()
            leftovers = here.cleanup.remove_leftovers(objects, keep_kinds) + here.cleanup.remaining_pods(objects)
            outcome = Outcome(name, namespace, actions=tuple(here.done), leftovers=leftovers)
            if not outcome.terminating:
                self.storage.delete_ledger()
                here.lease.forget()
            return outcome

    # --- look, test, prove ---------------------------------------------------------------------------------------

    def assess(self, *, wait: bool = False) -> Finding:
        """What state the release is in, seen from what the ledger says was installed last. Changes nothing of it.

        :param wait: wait for the Lease if another worker holds it, so that no operation in progress is judged.
        :raises ClusterBusy: with ``wait``: the holder continues for longer than ``lease_wait_s``.
        """
        seen = self.storage.observe(me=self._session.me)
        if wait and seen.holder is not None:
            log.info("%s is being changed by %s; waiting", self.request, seen.holder)
            with self._session.holding():
                seen = self.storage.observe()
        finding = classify(seen, None, adopt=self.request.policy.adopt)
        log.info("%s is %s: %s", self.request, finding.state, finding.message)
        return finding

    def candidate(self) -> Outcome:
        """The ledger's candidate, if it is what storage shows as the only deployed, newest revision.

        :raises ReleaseError: if it is not: what was observed of the workloads then proves nothing about it.
        """
        seen = self.storage.observe()
        candidate_of(seen)
        return self._outcome(seen)

    def test(self) -> Outcome:
        """Run the chart's tests; see :class:`gpu_fleet.hooks.helm.actions.run_tests.RunTests` for the errors."""
        with self._acting() as here:
            RunTests().run(here, self.storage.observe())
            return self._outcome(self.storage.observe())

    def mark_proven(self, revision: int, secret_uid: str) -> Outcome:
        """Write into the ledger that the candidate is good; nothing if the ledger says so already.

        :param revision: and ``secret_uid``: the revision whose workloads were judged.
        :raises ReleaseError: if the candidate is no longer that revision, or storage shows another one.
        """
        seen = self.storage.observe()
        refuse_other_candidate(seen, (revision, secret_uid))
        if not seen.ledger.candidate_is_proven:
            proven = seen.ledger.with_proven(rfc3339(self._session.clock()), self._session.run)
            seen = replace(seen, ledger=self.storage.write_ledger(proven))
            log.info("%s: revision %s is proven", self.request, revision)
        return self._outcome(seen)

    # --- the loop ------------------------------------------------------------------------------------------------

    def _pursue(self, here: ActionContext, goal: Goal, package: Package | None) -> Observation:
        """Observe, decide and run the next action, until nothing is left to do.

        :param package: what to install; ``None`` if the goal installs nothing.
        """
        for step in range(_MAX_STEPS):
            here.check_alive()
            # Drift is corrected once: what an upgrade did not put right, another one will not either.
            seen, decision = look(here.storage, here.request, goal, drift=step == 0)
            if decision.action is Action.NOTHING:
                return record(here, seen)
            log.info("%s: %s (%s)", decision.action, decision.message, decision.reason)
            refuse(decision)
            if step == 0 and package is not None:  # later this very call may have brought another chart back
                refuse_other_chart(seen, here.request, package.chart_name)
            error = action_of(decision, package).run(here, seen)
            if error is not None:
                self._recover(here)
                raise error
        raise ReleaseError(
            f"{self.request}: not settled after {_MAX_STEPS} steps ({', '.join(here.done)}); check 'helm history'",
            reason="NotConverging",
        )

    def _recover(self, here: ActionContext) -> None:
        """After a failure: leave nothing pending and, by policy, the last good content running."""
        if here.stopped:
            return
        seen, decision = look(here.storage, here.request, Goal.INSTALL)
        if decision.action not in _RECOVERIES:
            return
        if here.request.policy.remediation is Remediation.NONE and decision.action is not Action.UNLOCK:
            return
        log.info("%s: %s (%s)", decision.action, decision.message, decision.reason)
        action_of(decision, None).run(here, seen)

    @contextmanager
    def _acting(self) -> Iterator[ActionContext]:
        """Helm and the Lease, for calls that need nothing between the two."""
        with self._session.helm() as helm, self._session.acting(helm, self.request) as here:
            yield here

    def _still_judged(self, seen: Observation, judged: Judged) -> bool:
        if why := overtaken(seen, judged):
            log.warning("%s", why)
        return not why

    def _outcome(self, seen: Observation) -> Outcome:
        manifest = self.storage.manifest(seen.newest) if seen.newest is not None else ""
        return outcome_of(seen, manifest, self._session.done)
