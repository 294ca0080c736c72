"""Helm releases as operators, for any chart and any cluster; usable without the rest of the package.

The tasks are short: each takes the release's Lease, recovers what an earlier death left, does one thing without
waiting, and records what storage shows. Waiting for workloads is a trigger's job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from gpu_fleet.core.errors import (
    DeadlinePassed,
    GateBlind,
    GateFailed,
    GateRefused,
    GpuFleetError,
    ReleaseError,
    SpecError,
)
from gpu_fleet.operators.helm.base import EngineMixin, HelmOperator, lease_identity

if TYPE_CHECKING:
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.core.releases.request import ReleaseRequest
    from gpu_fleet.core.verdict import Verdict
    from gpu_fleet.hooks.helm.engine import ReleaseEngine
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

WaitFor = Literal["none", "installed", "workloads"]

#: What ``wait_for`` means, as names of gates.
GATE_OF_WAIT: dict[str, str] = {"installed": "release_installed", "workloads": "release_workloads"}
#: Errors of the wait, or of the caller's check, after which the remediation follows; GateBlind says nothing about them.
_UNHEALTHY = (GateFailed, GateRefused, DeadlinePassed)

Check = Callable[["KubeClient", Mapping[str, Any]], Any]


class HelmReleaseOperator(HelmOperator):
    """Installs or upgrades a Helm release so that it cannot get stuck.

    A rerun without a change writes nothing to the cluster. Arguments not listed here: see :class:`HelmOperator`.

    :param chart: chart name in ``repository``, or the path of a local archive or directory.
    :param repository: ``https://…`` or ``oci://…``; leave it out for a local chart.
    :param version: exact chart version; required with a repository.
    :param digest: sha256 of the chart archive; another archive is refused before anything is written.
    :param values: the chart's values. They replace those of earlier revisions, nothing is inherited.
    :param create_namespace: create the namespace if it is missing.
    :param remediation: after a failure, also of the wait: ``rollback`` to the proven revision (a failed first install
        is uninstalled), ``uninstall``, or ``none``. CRDs, volumes and namespaces stay in any case.
    :param drift: what to do about objects changed or deleted behind Helm's back: ``correct``, ``warn`` or ``ignore``.
        Fields that another field manager owns are corrected only with ``conflicts="force"``.
    :param skip_crds: do not install the chart's ``crds/``.
    :param prune: delete objects that failed revisions created and the deployed one does not have.
    :param wait_in_worker: wait inside helm (``--wait``), for charts whose hooks need ready pods. Holds a worker slot.
    :param wait_for: ``workloads``: defer until every workload is ready and every CRD established (a workload that wants
        no pod is not waited for, and leaves the revision unproven); ``installed``: only until their controllers have
        seen them and nothing is refused; ``none``.
    :param wait_deadline: upper bound of that wait, absolute from its beginning.
    :param patience: how long a cause such as a failing image pull must have lasted before it fails the wait; a
        container that has crashed three times fails it at once.
    :param check: called as ``check(kube_client, result)`` once the wait is over; an exception, or ``False``, means that
        the revision does not do what it should, and ``remediation`` follows. Needs a ``wait_for`` other than ``none``.
    :param mark_proven: write the revision into the ledger as good once ``wait_for="workloads"`` and ``check`` are
        satisfied, so that a later failure rolls back to it. A release without workloads and CRDs is proven only by a
        ``check``.
    :returns: release, namespace, revision, digest, secretUid, proven, actions, workloads, passing, crds, history,
        drift.
    """

    template_fields: tuple[str, ...] = (
        *HelmOperator.template_fields, "chart", "repository", "version", "digest", "values", "manifest",
    )  # fmt: skip

    def __init__(
        self,
        *,
        chart: str,
        repository: str = "",
        version: str = "",
        digest: str = "",
        values: Mapping[str, Any] | None = None,
        create_namespace: bool = False,
        remediation: Literal["rollback", "uninstall", "none"] = "rollback",
        drift: Literal["correct", "warn", "ignore"] = "correct",
        skip_crds: bool = False,
        prune: bool = True,
        wait_in_worker: bool = False,
        wait_for: WaitFor = "none",
        wait_deadline: timedelta = timedelta(minutes=10),
        patience: timedelta = timedelta(seconds=30),
        check: Check | None = None,
        mark_proven: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if wait_for not in {"none", *GATE_OF_WAIT}:
            known = ", ".join(("none", *GATE_OF_WAIT))
            raise SpecError(f"{wait_for!r} is not known", field="wait_for", remedy=f"one of {known}")
        if check is not None and wait_for == "none":
            raise SpecError(
                "is asked after the wait, and wait_for is 'none'",
                field="check",
                remedy="set wait_for to 'workloads' or 'installed', or leave check out",
            )
        self.chart = chart
        self.repository = repository
        self.version = version
        self.digest = digest
        self.values = values if values is not None else {}
        self.create_namespace = create_namespace
        self.remediation = remediation
        self.drift = drift
        self.skip_crds = skip_crds
        self.prune = prune
        self.wait_in_worker = wait_in_worker
        self.wait_for = wait_for
        self.wait_deadline = wait_deadline
        self.patience = patience
        self.check = check
        self.mark_proven = mark_proven
        self.manifest = ""

    def execute(self, context: Any) -> dict[str, Any]:
        engine = self._open(context)
        outcome = engine.install()
        self._show(engine.request, outcome)
        self._raise_if_killed()
        return self._wait(context, engine, outcome)

    def execute_complete(
        self, context: Any, event: Mapping[str, Any], revision: int | None = None, secret_uid: str = ""
    ) -> dict[str, Any]:
        """The trigger has seen the workloads ready, or not.

        :param revision: and ``secret_uid``: what was judged. ``dag.test()`` drops a deferral's own arguments; then it
            is whatever is the candidate now.
        """
        from gpu_fleet.triggers.waiting import conclude

        engine = self._open(context)
        outcome = engine.candidate()
        self._show(engine.request, outcome)
        if revision is not None and (revision, secret_uid) != (outcome.revision, outcome.secret_uid):
            raise ReleaseError(
                f"{engine.request}: revision {revision} was waited for, but revision {outcome.revision} is deployed "
                "now; another run has changed the release: clear this task to install again",
                reason="CandidateChanged",
            )
        return self._settle(engine, outcome, str(event["gate"]), lambda: conclude(event))

    def _request(self) -> ReleaseRequest:
        from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest

        if not isinstance(self.values, Mapping):
            raise SpecError(
                f"is a {type(self.values).__name__}, not a mapping", field="values", remedy="give a mapping of values"
            )
        policy = ReleasePolicy(
            **self._policy(),
            remediation=self.remediation,  # type: ignore[arg-type]  # words are checked and converted there
            drift=self.drift,  # type: ignore[arg-type]
            create_namespace=self.create_namespace,
            skip_crds=self.skip_crds,
            wait=self.wait_in_worker,
            prune=self.prune,
        )
        chart = ChartRef(self.chart, self.version or "", self.repository or "", self.digest or "")
        return ReleaseRequest(self.release_name, self.namespace, chart, dict(self.values), policy)

    def _wait(self, context: Any, engine: ReleaseEngine, outcome: Outcome) -> dict[str, Any]:
        from gpu_fleet.triggers.waiting import await_gate

        if self.wait_for == "none":
            return self._done(outcome)
        gate = GATE_OF_WAIT[self.wait_for]
        if not outcome.workloads and not outcome.crds:
            self.log.info("%s has neither workloads nor CRDs: there is nothing to wait for", engine.request)
            return self._settle(engine, outcome, gate, lambda: None)
        return self._settle(
            engine,
            outcome,
            gate,
            lambda: await_gate(
                self,
                context,
                gate,
                self._gate_args(outcome),
                self.wait_deadline.total_seconds(),
                access=self._access(),
                kwargs={"revision": outcome.revision, "secret_uid": outcome.secret_uid},
            ),
        )

    def _gate_args(self, outcome: Outcome) -> dict[str, Any]:
        return {
            "release": self.release_name,
            "namespace": self.namespace,
            "workloads": list(outcome.workloads),
            "passing": list(outcome.passing),
            "crds": list(outcome.crds),
            "patience_s": self.patience.total_seconds(),
            "allow_unproven": True,
        }

    def _settle(
        self, engine: ReleaseEngine, outcome: Outcome, gate: str, wait: Callable[[], Verdict | None]
    ) -> dict[str, Any]:
        """Wait, check, prove; a revision that is seen not to work is remedied.

        :param wait: gives the READY verdict, or ``None`` where there is nothing to wait for, or raises.
        """
        from gpu_fleet.triggers.waiting import reconsider

        try:
            try:
                verdict = wait()
            except (*_UNHEALTHY, GateBlind) as error:
                verdict = reconsider(error, gate, self._gate_args(outcome), self._access())
            return self._finish(engine, outcome, verdict)
        except _UNHEALTHY as error:
            self._remedy(engine, outcome, error)
            raise

    def _finish(self, engine: ReleaseEngine, outcome: Outcome, verdict: Verdict | None) -> dict[str, Any]:
        """The wait is over; a revision is proven only by workloads that exist and are ready.

        Where there is none, only the caller's check can prove it.
        """
        self._raise_if_killed()
        if verdict is not None:
            self.log.info("%s: %s", verdict.reason, verdict.message)
        if self.check is not None:
            self._check(self.check, engine, outcome)
        idle = verdict is not None and (verdict.data or {}).get("unproven")
        if idle or (verdict is None and self.check is None):
            self.log.warning("%s: revision %s stays unproven: nothing of it has run", engine.request, outcome.revision)
        elif self.mark_proven and self.wait_for == "workloads" and outcome.revision is not None:
            outcome = engine.mark_proven(outcome.revision, outcome.secret_uid)
        return self._done(outcome)

    def _check(self, check: Check, engine: ReleaseEngine, outcome: Outcome) -> None:
        """
        :raises GateFailed: the check says no, or raised whatever it liked.
        """
        says = f"{engine.request}: the check says that revision {outcome.revision} does not work"
        try:
            answer = check(engine.client, outcome.to_json())
        except (*_UNHEALTHY, GateBlind):
            raise
        except Exception as error:
            self._raise_if_killed()
            raise GateFailed(f"{says}: {error!r}", reason="CheckFailed") from error
        if answer is False:
            raise GateFailed(says, reason="CheckFailed")

    def _remedy(self, engine: ReleaseEngine, outcome: Outcome, error: GpuFleetError) -> None:
        """The revision is deployed and does not work: what follows, by policy. The error itself is raised anyway."""
        self._raise_if_killed()
        self.log.error("%s: revision %s: %s", engine.request, outcome.revision, error)
        try:
            actions = engine.remedy_unhealthy(outcome.revision or 0, outcome.secret_uid)
        except GpuFleetError as second:
            raise ReleaseError(
                f"{error.message}; and the remediation did not succeed: {second.message}", reason="RemediationFailed"
            ) from second
        self.log.info("remediation: %s", ", ".join(actions) or "nothing")


class HelmRollbackOperator(HelmOperator):
    """Rolls a release back: to a named revision, or to the one that the ledger says is proven.

    Never "the previous revision", which may be one that never worked. Nothing is written if that content is deployed
    already. Arguments not listed here: see :class:`HelmOperator`.

    :param revision: number of the revision; ``None`` (or an empty string) for the ledger's proven one.
    :returns: as :class:`HelmReleaseOperator`.
    :raises ReleaseError: no revision was ever proven, or the named one is no longer stored or never worked.
    """

    template_fields: tuple[str, ...] = (*HelmOperator.template_fields, "revision", "manifest")

    def __init__(self, *, revision: int | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.revision = revision
        self.manifest = ""

    def execute(self, context: Any) -> dict[str, Any]:
        wanted = self._wanted()
        engine = self._open(context)
        return self._done(engine.remediate() if wanted is None else engine.roll_back(wanted))

    def _wanted(self) -> int | None:
        if self.revision in (None, "", "None"):
            return None
        try:
            number = int(str(self.revision))
        except ValueError:
            number = 0
        if number < 1:
            raise SpecError(f"{self.revision!r} is not a revision", field="revision", remedy="a number, or nothing")
        return number


class HelmUninstallOperator(HelmOperator):
    """Uninstalls a release, goes on with an interrupted uninstall, and waits until its objects are gone.

    Refused while objects exist whose CustomResourceDefinitions the chart's templates would take away. Done already is
    success. Arguments not listed here: see :class:`HelmOperator`.

    :param keep_crds: leave the CustomResourceDefinitions of the chart's templates in the cluster.
    :param gone_within: how long to look for the last objects to go; a retry of the task looks again.
    :returns: release, namespace, actions, leftovers (what is kept on purpose).
    :raises GateFailed: objects are still there; the message names them and their finalizers.
    """

    def __init__(
        self, *, keep_crds: bool = False, gone_within: timedelta = timedelta(minutes=1), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.keep_crds = keep_crds
        self.gone_within = gone_within

    def execute(self, context: Any) -> dict[str, Any]:
        engine = self._open(context)
        keep = frozenset({"CustomResourceDefinition"}) if self.keep_crds else frozenset()
        until = time.monotonic() + self.gone_within.total_seconds()
        while True:
            outcome = engine.uninstall(keep_kinds=keep)
            self._raise_if_killed()
            if not engine.cleanup.waiting(outcome.leftovers):
                return self._done(outcome)
            if time.monotonic() > until:
                raise GateFailed(
                    f"{engine.request} is uninstalled, but these are not gone: {'; '.join(outcome.leftovers)}; "
                    "look at what their finalizers wait for",
                    reason="LeftoverObjects",
                )
            time.sleep(1.0)


class HelmTestOperator(HelmOperator):
    """Runs the chart's tests (``helm test``) on the deployed revision; a failing test's log is in the task's log.

    What counts is the result that Helm's storage shows, not helm's exit code. Holds a worker slot while they run.
    Arguments not listed here: see :class:`HelmOperator`.

    :param mark_proven: the tests prove the revision: write it into the ledger as good.
    :returns: as :class:`HelmReleaseOperator`.
    :raises GateFailed: a test failed, or was not run.
    :raises Invalid: the chart has no tests.
    """

    template_fields: tuple[str, ...] = (*HelmOperator.template_fields, "manifest")

    def __init__(self, *, mark_proven: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mark_proven = mark_proven
        self.manifest = ""

    def execute(self, context: Any) -> dict[str, Any]:
        engine = self._open(context)
        outcome = engine.test()
        self._raise_if_killed()
        if self.mark_proven and outcome.revision is not None:
            outcome = engine.mark_proven(outcome.revision, outcome.secret_uid)
        return self._done(outcome)


__all__ = [
    "EngineMixin",
    "HelmOperator",
    "HelmReleaseOperator",
    "HelmRollbackOperator",
    "HelmTestOperator",
    "HelmUninstallOperator",
    "lease_identity",
]
