"""What operators on Helm releases share: the engine's life in a task, the way to the cluster, common arguments."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator

from gpu_fleet.core.errors import TransientError
from gpu_fleet.operators.base import RETRY_POLICY, run_name

if TYPE_CHECKING:
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.core.releases.request import ReleaseRequest
    from gpu_fleet.hooks.helm.engine import ReleaseEngine
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient


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
        from gpu_fleet.hooks.helm.engine import ReleaseEngine

        self._engine = ReleaseEngine(
            client, request, me=lease_identity(context), run=run_name(context), lease_wait_s=lease_wait_s
        )
        if self._killed:
            self._engine.cancel(self._killed)
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


class HelmOperator(EngineMixin, BaseOperator):
    """Base of the operators on one release of any chart: names it and the cluster it is in.

    Errors that a retry cannot cure end the task at once (``RETRY_POLICY``), unless another retry policy is given.

    :param release_name: name of the release.
    :param namespace: its namespace.
    :param access: the cluster: a ``ClusterAccess`` or its JSON form: ``{"mode": "eks", "cluster_name": …, "region": …,
        "aws_conn_id": …}`` or ``{"mode": "kubeconfig", "path": …, "context": …}``.
    :param conflicts: ``fail`` or ``force`` when another field manager owns a field.
    :param hooks: ``run`` or ``skip`` the chart's hooks in a rollback.
    :param operation_timeout: for each hook or single wait of helm.
    :param command_deadline: after it a helm command is ended, whatever it says; on EKS at most 14 minutes, because
        helm's token is fixed when it starts.
    :param lease_wait: how long to wait for another run that is changing the release.
    :param history_max: revisions that Helm keeps; raised where fewer would prune the proven one.
    :param adopt: take over a release or revision that somebody else made.
    """

    template_fields: tuple[str, ...] = ("release_name", "namespace", "access")
    template_fields_renderers: ClassVar[dict[str, str]] = {"values": "json", "manifest": "yaml", "access": "json"}
    ui_color = "#dde9ff"

    def __init__(
        self,
        *,
        release_name: str,
        namespace: str,
        access: ClusterAccess | Mapping[str, Any],
        conflicts: Literal["fail", "force"] = "fail",
        hooks: Literal["run", "skip"] = "run",
        operation_timeout: timedelta = timedelta(minutes=5),
        command_deadline: timedelta = timedelta(minutes=10),
        lease_wait: timedelta = timedelta(minutes=2),
        history_max: int = 10,
        adopt: bool = False,
        **kwargs: Any,
    ) -> None:
        if "retry_policy" not in {**(kwargs.get("default_args") or {}), **kwargs}:
            kwargs["retry_policy"] = RETRY_POLICY
        super().__init__(**kwargs)
        self.release_name = release_name
        self.namespace = namespace
        self.access = access
        self.conflicts = conflicts
        self.hooks = hooks
        self.operation_timeout = operation_timeout
        self.command_deadline = command_deadline
        self.lease_wait = lease_wait
        self.history_max = history_max
        self.adopt = adopt

    def _open(self, context: Mapping[str, Any]) -> ReleaseEngine:
        from gpu_fleet.hooks.helm.hook import check_deadline
        from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

        access, request = self._access(), self._request()
        check_deadline(access, request.policy)
        client = KubernetesHook(access).client()
        return self._make_engine(context, client, request, lease_wait_s=self.lease_wait.total_seconds())

    def _access(self) -> ClusterAccess:
        from gpu_fleet.hooks.helm.hook import access_of

        return access_of(self.access)

    def _policy(self) -> dict[str, Any]:
        """The arguments of ``ReleasePolicy`` that every operator has."""
        from gpu_fleet.core.errors import SpecError

        if self.hooks not in {"run", "skip"}:
            raise SpecError(f"{self.hooks!r} is not known", field="hooks", remedy="run or skip")
        return {
            "conflicts": self.conflicts,
            "rollback_hooks": self.hooks == "run",
            "history_max": self.history_max,
            "operation_timeout": int(self.operation_timeout.total_seconds()),
            "deadline": int(self.command_deadline.total_seconds()),
            "adopt": self.adopt,
        }

    def _request(self) -> ReleaseRequest:
        """A request that only names the release: its chart is whatever is installed."""
        from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest

        chart = ChartRef(self.release_name)
        return ReleaseRequest(self.release_name, self.namespace, chart, policy=ReleasePolicy(**self._policy()))

    def _done(self, outcome: Outcome) -> dict[str, Any]:
        self.manifest = outcome.manifest
        for line in outcome.history:
            self.log.info("history of release %s/%s: revision %s", self.namespace, self.release_name, line)
        for line in (*outcome.drift, *outcome.leftovers):
            self.log.warning("%s", line)
        self._raise_if_killed()
        return outcome.to_json()


__all__ = ["EngineMixin", "HelmOperator", "lease_identity"]
