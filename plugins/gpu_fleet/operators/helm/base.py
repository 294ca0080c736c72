"""What operators on Helm releases share: the engine's life in a task, the way to the cluster, common arguments."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator

from gpu_fleet.core.errors import DeadlinePassed, GateFailed, GateRefused, SpecError, TransientError
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.operators.base import RETRY_POLICY, run_name

if TYPE_CHECKING:
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.hooks.helm.engine import ReleaseEngine
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient

#: How a wait, or a caller's check, ends if the workloads were seen not to work. GateBlind is none
#: of them: it means that they were not seen.
UNHEALTHY = (GateFailed, GateRefused, DeadlinePassed)

_CRDS = frozenset({"CustomResourceDefinition"})
#: Seconds between two looks at what an uninstall has left.
_POLL_SECONDS = 1.0


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

    def _uninstall(self, engine: ReleaseEngine, *, keep_crds: bool, within: timedelta) -> Outcome:
        """Uninstall, and look again until the release's objects are gone.

        :param keep_crds: leave CustomResourceDefinitions in the cluster.
        :param within: how long to look in this worker; a retry of the task looks again.
        :raises GateFailed: ``LeftoverObjects``: objects are still being deleted.
        """
        keep = _CRDS if keep_crds else frozenset()
        until = time.monotonic() + within.total_seconds()
        while True:
            outcome = engine.uninstall(keep_kinds=keep)
            self._raise_if_killed()
            if not outcome.terminating:
                return outcome
            if time.monotonic() > until:
                left = "; ".join(str(item) for item in outcome.leftovers)
                raise GateFailed(
                    f"{engine.request} is uninstalled, but these objects are not gone: {left}; "
                    "check what their finalizers wait for",
                    reason="LeftoverObjects",
                )
            time.sleep(_POLL_SECONDS)

    def on_kill(self) -> None:
        """End a running helm with SIGTERM, so that it marks its revision as failed; ``execute`` then raises."""
        self._killed = "the task was killed or exceeded its execution_timeout"
        if self._engine is not None:
            self._engine.cancel(self._killed)

    def _raise_if_killed(self) -> None:
        if self._killed:
            raise TransientError(self._killed, reason="Interrupted")


class HelmOperator(EngineMixin, BaseOperator):
    """Base of the operators on one release of any chart: names it and the cluster it is in.

    Errors that a retry cannot cure end the task at once (``RETRY_POLICY``), unless another retry policy is given.

    *Which release*

    :param release_name: name of the release.
    :param namespace: its namespace.
    :param access: the cluster: a ``ClusterAccess`` or its JSON form: ``{"mode": "eks", "cluster_name": …, "region": …,
        "aws_conn_id": …}`` or ``{"mode": "kubeconfig", "path": …, "context": …}``.

    *Policy*

    :param adopt: take over a release or revision that was not made by this package.
    :param conflicts: ``fail`` or ``force`` when another field manager owns a field.
    :param hooks: ``run`` or ``skip`` the chart's hooks in a rollback.
    :param history_max: revisions that Helm keeps; raised where fewer would prune the proven one.

    *Time limits*

    :param lease_wait: how long to wait for another run that is changing the release.
    :param operation_timeout: for each hook or single wait of helm.
    :param command_deadline: after it a helm command is ended, whatever its own time-outs are; on EKS at most 14
        minutes, because helm's token is fixed when it starts.
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
        adopt: bool = False,
        conflicts: Literal["fail", "force"] = "fail",
        hooks: Literal["run", "skip"] = "run",
        history_max: int = 10,
        lease_wait: timedelta = timedelta(minutes=2),
        operation_timeout: timedelta = timedelta(minutes=5),
        command_deadline: timedelta = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        if "retry_policy" not in {**(kwargs.get("default_args") or {}), **kwargs}:
            kwargs["retry_policy"] = RETRY_POLICY
        super().__init__(**kwargs)
        self.release_name = release_name
        self.namespace = namespace
        self.access = access
        self.adopt = adopt
        self.conflicts = conflicts
        self.hooks = hooks
        self.history_max = history_max
        self.lease_wait = lease_wait
        self.operation_timeout = operation_timeout
        self.command_deadline = command_deadline

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
        chart = ChartRef(self.release_name)
        return ReleaseRequest(self.release_name, self.namespace, chart, policy=ReleasePolicy(**self._policy()))

    def _finished(self, outcome: Outcome) -> dict[str, Any]:
        """Log and show what was done; the task's XCom.

        :raises TransientError: the task was killed meanwhile.
        """
        self.manifest = outcome.manifest
        for line in outcome.history:
            self.log.info("history of release %s/%s: revision %s", self.namespace, self.release_name, line)
        for item in (*outcome.drift, *outcome.leftovers):
            self.log.warning("%s", item)
        self._raise_if_killed()
        return outcome.to_json()


__all__ = ["UNHEALTHY", "EngineMixin", "HelmOperator", "lease_identity"]
