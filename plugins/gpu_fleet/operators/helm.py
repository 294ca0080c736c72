"""A Helm release as one operator, for any chart and any cluster; usable without the rest of the package.

The task is short: it takes the release's Lease, recovers what an earlier death left, installs or upgrades without
waiting, and records what it did. Waiting for the workloads is a trigger's job and optional.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator

from gpu_fleet.core.errors import SpecError, TransientError
from gpu_fleet.operators.base import run_name

if TYPE_CHECKING:
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.core.releases.request import ReleaseRequest
    from gpu_fleet.hooks.helm_release import ReleaseEngine
    from gpu_fleet.hooks.kubernetes import ClusterAccess, KubeClient

WaitFor = Literal["none", "installed", "workloads"]

#: What ``wait_for`` means, as names of gates.
GATE_OF_WAIT: dict[str, str] = {"installed": "release_installed", "workloads": "release_workloads"}


def lease_identity(context: Mapping[str, Any]) -> str:
    """Who holds a Lease: Dag run, task, try, and the very process.

    The process is part of it: a try that Airflow believes dead may be alive on a machine that lost its network.
    """
    ti = context["ti"]
    index = f"[{ti.map_index}]" if (ti.map_index if ti.map_index is not None else -1) >= 0 else ""
    where = f"{socket.gethostname()}:{os.getpid()}"
    return f"{run_name(context)}/{ti.task_id}{index}/{ti.try_number}@{where}"


class EngineMixin:
    """What operators on releases share: making the engine, ending it, showing what it did in the UI."""

    #: Airflow writes the rendered fields again when the task ends, with what ``execute`` has put into them.
    overwrite_rtif_after_execution = True

    _engine: ReleaseEngine | None = None
    _killed = ""
    values: Any = None
    manifest: str = ""

    def _make_engine(
        self, context: Mapping[str, Any], client: KubeClient, request: ReleaseRequest, *, lease_wait_s: float = 120.0
    ) -> ReleaseEngine:
        from gpu_fleet.hooks.helm_release import ReleaseEngine

        self._engine = ReleaseEngine(
            client, request, me=lease_identity(context), run=run_name(context), lease_wait_s=lease_wait_s
        )
        return self._engine

    def _show(self, request: ReleaseRequest, outcome: Outcome) -> None:
        """Values and manifest become readable in the UI's rendered fields, Secrets hidden."""
        self.values = dict(request.values)
        self.manifest = outcome.manifest

    def on_kill(self) -> None:
        """Ends a running helm with SIGTERM, so that it writes its revision off as failed; ``execute`` then raises."""
        self._killed = "the task was killed or ran into its execution time-out"
        if self._engine is not None:
            self._engine.cancel(self._killed)

    def _raise_if_killed(self) -> None:
        if self._killed:
            raise TransientError(self._killed, reason="Interrupted")


class HelmReleaseOperator(EngineMixin, BaseOperator):
    """Installs or upgrades a Helm release so that it cannot get stuck.

    :param release_name: name of the release.
    :param namespace: its namespace.
    :param chart: chart name in ``repository``, or the path of a local archive or directory.
    :param access: the cluster: a ``ClusterAccess`` or its JSON form.
    :param repository: ``https://…`` or ``oci://…``; leave it out for a local chart.
    :param version: exact chart version; required with a repository.
    :param digest: sha256 of the chart archive; another archive is refused before anything is written.
    :param values: the chart's values. They replace those of earlier revisions, nothing is inherited.
    :param create_namespace: create the namespace if it is missing.
    :param remediation: after a failure: ``rollback`` to the proven revision (a failed first install is uninstalled),
        ``uninstall``, or ``none``.
    :param conflicts: ``fail`` or ``force`` when another field manager owns a field.
    :param skip_crds: do not install the chart's ``crds/``.
    :param wait_in_worker: wait inside helm (``--wait``), for charts whose hooks need ready pods. Holds a worker slot.
    :param wait_for: ``workloads``: defer until every workload is ready; ``installed``: only until their controllers
        have seen them and nothing is refused; ``none``.
    :param wait_deadline: upper bound of that wait.
    :param mark_proven: write the revision into the ledger as good once ``wait_for="workloads"`` is satisfied, so that
        a later failure rolls back to it.
    :param operation_timeout: for each hook or single wait of helm.
    :param command_deadline: after it a helm command is ended, whatever it says.
    :param lease_wait: how long to wait for another run that is changing the release.
    :param history_max: revisions that Helm keeps; raised where fewer would prune the proven one.
    :param adopt: take over a release or revision that somebody else made.
    :param rollback_hooks: run the chart's rollback hooks.
    :returns: release, namespace, revision, digest, secretUid, proven, actions, workloads.
    """

    template_fields = (
        "release_name", "namespace", "chart", "repository", "version", "digest", "values", "manifest",
    )  # fmt: skip
    template_fields_renderers: ClassVar[dict[str, str]] = {"values": "json", "manifest": "yaml"}
    ui_color = "#dde9ff"

    def __init__(
        self,
        *,
        release_name: str,
        namespace: str,
        chart: str,
        access: ClusterAccess | Mapping[str, Any],
        repository: str = "",
        version: str = "",
        digest: str = "",
        values: Mapping[str, Any] | None = None,
        create_namespace: bool = False,
        remediation: Literal["rollback", "uninstall", "none"] = "rollback",
        conflicts: Literal["fail", "force"] = "fail",
        skip_crds: bool = False,
        wait_in_worker: bool = False,
        wait_for: WaitFor = "none",
        wait_deadline: timedelta = timedelta(minutes=10),
        mark_proven: bool = True,
        operation_timeout: timedelta = timedelta(minutes=5),
        command_deadline: timedelta = timedelta(minutes=10),
        lease_wait: timedelta = timedelta(minutes=2),
        history_max: int = 10,
        adopt: bool = False,
        rollback_hooks: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.release_name = release_name
        self.namespace = namespace
        self.chart = chart
        self.access = access
        self.repository = repository
        self.version = version
        self.digest = digest
        self.values = values if values is not None else {}
        self.create_namespace = create_namespace
        self.remediation = remediation
        self.conflicts = conflicts
        self.skip_crds = skip_crds
        self.wait_in_worker = wait_in_worker
        self.wait_for = wait_for
        self.wait_deadline = wait_deadline
        self.mark_proven = mark_proven
        self.operation_timeout = operation_timeout
        self.command_deadline = command_deadline
        self.lease_wait = lease_wait
        self.history_max = history_max
        self.adopt = adopt
        self.rollback_hooks = rollback_hooks
        self.manifest = ""

    def execute(self, context: Any) -> dict[str, Any]:
        engine = self._open(context)
        outcome = engine.install()
        self._show(engine.request, outcome)
        self._raise_if_killed()
        return self._wait(context, engine, outcome)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.triggers.looking import conclude

        verdict = conclude(event)
        self.log.info("%s: %s", verdict.reason, verdict.message)
        engine = self._open(context)
        outcome = engine.candidate()
        self._show(engine.request, outcome)
        return self._finish(engine, outcome)

    def _open(self, context: Any) -> ReleaseEngine:
        from gpu_fleet.hooks.kubernetes import KubernetesHook

        client = KubernetesHook(self._access()).client()
        return self._make_engine(context, client, self._request(), lease_wait_s=self.lease_wait.total_seconds())

    def _access(self) -> ClusterAccess:
        from gpu_fleet.hooks.kubernetes import ClusterAccess

        if isinstance(self.access, ClusterAccess):
            return self.access
        return ClusterAccess.from_json(self.access)

    def _request(self) -> ReleaseRequest:
        from gpu_fleet.core.releases.request import ChartRef, Conflicts, ReleasePolicy, ReleaseRequest, Remediation

        if not isinstance(self.values, Mapping):
            raise SpecError(
                f"is a {type(self.values).__name__}, not a mapping", field="values", remedy="give a mapping of values"
            )
        policy = ReleasePolicy(
            remediation=Remediation(self.remediation),
            conflicts=Conflicts(self.conflicts),
            create_namespace=self.create_namespace,
            skip_crds=self.skip_crds,
            wait=self.wait_in_worker,
            rollback_hooks=self.rollback_hooks,
            history_max=self.history_max,
            operation_timeout=int(self.operation_timeout.total_seconds()),
            deadline=int(self.command_deadline.total_seconds()),
            adopt=self.adopt,
        )
        chart = ChartRef(self.chart, self.version or "", self.repository or "", self.digest or "")
        return ReleaseRequest(self.release_name, self.namespace, chart, dict(self.values), policy)

    def _wait(self, context: Any, engine: ReleaseEngine, outcome: Outcome) -> dict[str, Any]:
        from gpu_fleet.triggers.looking import await_gate

        if self.wait_for == "none":
            return outcome.to_json()
        verdict = await_gate(
            self,
            context,
            GATE_OF_WAIT[self.wait_for],
            {"release": self.release_name, "namespace": self.namespace, "workloads": list(outcome.workloads)},
            self.wait_deadline.total_seconds(),
            access=self._access(),
        )
        self.log.info("%s: %s", verdict.reason, verdict.message)
        return self._finish(engine, outcome)

    def _finish(self, engine: ReleaseEngine, outcome: Outcome) -> dict[str, Any]:
        """The wait is over; a revision is proven only by workloads that exist and are ready."""
        self._raise_if_killed()
        proves = self.mark_proven and self.wait_for == "workloads" and outcome.revision is not None
        if proves and outcome.revision is not None:
            outcome = engine.mark_proven(outcome.revision, outcome.secret_uid)
        return outcome.to_json()
