"""Install or upgrade a release of any chart, in any cluster.

The task is short: it takes the release's Lease, recovers what an earlier death left, does one thing without waiting,
and records what storage shows. Waiting for workloads is a trigger's job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from gpu_fleet.core.errors import GateBlind, GateFailed, GpuFleetError, ReleaseError, SpecError
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.operators.helm.base import UNHEALTHY, HelmOperator

if TYPE_CHECKING:
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.core.verdict import Verdict
    from gpu_fleet.hooks.helm.engine import ReleaseEngine
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

WaitFor = Literal["none", "installed", "workloads"]

#: What ``wait_for`` means, as names of gates.
GATE_OF_WAIT: dict[str, str] = {"installed": "release_installed", "workloads": "release_workloads"}

Check = Callable[["KubeClient", Mapping[str, Any]], Any]


class HelmReleaseOperator(HelmOperator):
    """Installs or upgrades a Helm release so that it cannot get stuck.

    A rerun without a change writes nothing to the cluster. The arguments by situation; those without a description are
    described at :class:`HelmOperator`.

    *Which release*: ``release_name``, ``namespace``, ``access``.

    *Chart*

    :param chart: chart name in ``repository``, or the path of a local archive or directory.
    :param repository: ``https://…`` or ``oci://…``; leave it out for a local chart.
    :param version: exact chart version; required with a repository.
    :param digest: sha256 of the chart archive; another archive is refused before anything is written.
    :param values: the chart's values. They replace those of earlier revisions; nothing is inherited.
    :param skip_crds: do not install the chart's ``crds/``.
    :param create_namespace: create the namespace if it is missing.

    *Policy*: also ``adopt``, ``conflicts``, ``hooks``, ``history_max``.

    :param remediation: after a failure, also of the wait: ``rollback`` to the proven revision (a failed first install
        is uninstalled), ``uninstall``, or ``none``. CRDs, volumes and namespaces stay in any case.
    :param drift: what to do about objects changed or deleted behind Helm's back: ``correct``, ``warn`` or ``ignore``.
        Fields that another field manager owns are corrected only with ``conflicts="force"``.
    :param prune: delete objects that failed revisions created and the deployed one does not have.

    *Wait*

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
    :param wait_in_worker: wait inside helm (``--wait``), for charts whose hooks need ready pods. Holds a worker slot.

    *Time limits*: ``lease_wait``, ``operation_timeout``, ``command_deadline``.

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
        skip_crds: bool = False,
        create_namespace: bool = False,
        remediation: Literal["rollback", "uninstall", "none"] = "rollback",
        drift: Literal["correct", "warn", "ignore"] = "correct",
        prune: bool = True,
        wait_for: WaitFor = "none",
        wait_deadline: timedelta = timedelta(minutes=10),
        patience: timedelta = timedelta(seconds=30),
        check: Check | None = None,
        mark_proven: bool = True,
        wait_in_worker: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if wait_for not in {"none", *GATE_OF_WAIT}:
            known = ", ".join(("none", *GATE_OF_WAIT))
            raise SpecError(f"{wait_for!r} is not known", field="wait_for", remedy=f"one of {known}")
        if check is not None and wait_for == "none":
            raise SpecError(
                "is called after the wait, and wait_for is 'none'",
                field="check",
                remedy="set wait_for to 'workloads' or 'installed', or leave check out",
            )
        self.chart = chart
        self.repository = repository
        self.version = version
        self.digest = digest
        self.values = values if values is not None else {}
        self.skip_crds = skip_crds
        self.create_namespace = create_namespace
        self.remediation = remediation
        self.drift = drift
        self.prune = prune
        self.wait_for = wait_for
        self.wait_deadline = wait_deadline
        self.patience = patience
        self.check = check
        self.mark_proven = mark_proven
        self.wait_in_worker = wait_in_worker
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
        """The trigger has reported that the workloads are ready, or not.

        :param revision: and ``secret_uid``: what was judged. ``dag.test()`` drops a deferral's own arguments; then it
            is the present candidate.
        """
        from gpu_fleet.triggers.waiting import conclude

        engine = self._open(context)
        outcome = engine.candidate()
        self._show(engine.request, outcome)
        if revision is not None and (revision, secret_uid) != (outcome.revision, outcome.secret_uid):
            raise ReleaseError(
                f"{engine.request}: this task waited for revision {revision}, but revision {outcome.revision} is "
                "deployed now; another run has changed the release: clear this task to install again",
                reason="CandidateChanged",
            )
        return self._settle(engine, outcome, str(event["gate"]), lambda: conclude(event))

    def _request(self) -> ReleaseRequest:
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
            return self._finished(outcome)
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
        """Wait, check, prove; a revision that was seen not to work is remedied.

        :param wait: returns the READY verdict, or ``None`` where there is nothing to wait for, or raises.
        """
        from gpu_fleet.triggers.waiting import reconsider

        try:
            try:
                verdict = wait()
            except (*UNHEALTHY, GateBlind) as error:
                verdict = reconsider(error, gate, self._gate_args(outcome), self._access())
            return self._conclude(engine, outcome, verdict)
        except UNHEALTHY as error:
            self._remedy(engine, outcome, error)
            raise

    def _conclude(self, engine: ReleaseEngine, outcome: Outcome, verdict: Verdict | None) -> dict[str, Any]:
        """The wait is over: check, and prove. Only workloads that exist and are ready prove a revision, or, where there
        are none, the caller's check.
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
        return self._finished(outcome)

    def _check(self, check: Check, engine: ReleaseEngine, outcome: Outcome) -> None:
        """
        :raises GateFailed: the check returned ``False`` or raised any exception.
        """
        says = f"{engine.request}: the check says that revision {outcome.revision} does not work"
        try:
            answer = check(engine.client, outcome.to_json())
        except (*UNHEALTHY, GateBlind):
            raise
        except Exception as error:
            self._raise_if_killed()
            raise GateFailed(f"{says}: {error!r}", reason="CheckFailed") from error
        if answer is False:
            raise GateFailed(says, reason="CheckFailed")

    def _remedy(self, engine: ReleaseEngine, outcome: Outcome, error: GpuFleetError) -> None:
        """Undo a deployed revision that does not work, by policy. The caller raises the error itself anyway."""
        self._raise_if_killed()
        self.log.error("%s: revision %s: %s", engine.request, outcome.revision, error)
        try:
            actions = engine.remedy_unhealthy(outcome.revision or 0, outcome.secret_uid)
        except GpuFleetError as second:
            raise ReleaseError(
                f"{error.message}; and the remediation failed: {second.message}", reason="RemediationFailed"
            ) from second
        self.log.info("remediation: %s", ", ".join(actions) or "nothing")
