"""Waits for a Helm release that another DAG, or a person, installs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseSensorOperator

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.objects import crds, passing, workloads
from gpu_fleet.core.releases.storage import ReleaseStatus, StoredRevision
from gpu_fleet.triggers.waiting import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess


class HelmReleaseSensor(BaseSensorOperator):
    """Waits until a release is deployed and, if wanted, its workloads are ready. Reads only.

    Between two looks at Helm's storage no worker slot is held (``mode="reschedule"``); the wait for workloads is
    deferred to a trigger.

    :param release_name: name of the release.
    :param namespace: its namespace.
    :param access: the cluster: a ``ClusterAccess`` or its JSON form.
    :param revision: wait for this revision or a later one.
    :param absent: wait until there is no such release instead.
    :param workloads: also wait for its workloads.
    :param allow_unproven: do not wait for a workload that wants no pod (no node matches it, or it has 0 replicas), as
        :class:`gpu_fleet.helm.HelmReleaseOperator` does not; ``False``: wait until something of it runs.
    :param workloads_deadline: upper bound of that second wait, absolute from its beginning.
    :returns: release, namespace, revision, status.
    """

    template_fields = ("release_name", "namespace", "access", "revision")
    template_fields_renderers: ClassVar[dict[str, str]] = {"access": "json"}
    ui_color = "#e8f3f1"

    def __init__(
        self,
        *,
        release_name: str,
        namespace: str,
        access: ClusterAccess | Mapping[str, Any],
        revision: int | str | None = None,
        absent: bool = False,
        workloads: bool = True,
        allow_unproven: bool = True,
        workloads_deadline: timedelta = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("mode", "reschedule")
        super().__init__(**kwargs)
        self.release_name = release_name
        self.namespace = namespace
        self.access = access
        self.revision = revision
        self.absent = absent
        self.workloads = workloads
        self.allow_unproven = allow_unproven
        self.workloads_deadline = workloads_deadline

    def poke(self, context: Mapping[str, Any]) -> bool:  # noqa: ARG002
        newest = self._newest()
        if newest is None:
            self.log.info("release %s/%s does not exist", self.namespace, self.release_name)
            return self.absent
        self.log.info("release %s/%s: revision %s %s", *self._name, newest.revision, newest.status)
        if self.absent:
            return newest.status is ReleaseStatus.UNINSTALLED
        return newest.status is ReleaseStatus.DEPLOYED and newest.revision >= self._wanted()

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        super().execute(context)
        if self.workloads and not self.absent:
            from gpu_fleet.hooks.helm.hook import access_of

            names = dict(zip(("release", "namespace"), reversed(self._name), strict=True))
            wanted = self._manifest_args()
            if wanted["workloads"] or wanted["crds"]:
                seconds = self.workloads_deadline.total_seconds()
                access = access_of(self.access)
                args = {**names, **wanted, "allow_unproven": self.allow_unproven}
                await_gate(self, context, "release_workloads", args, seconds, access=access)
        return self._found()

    def execute_complete(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        verdict = conclude(event)
        self.log.info("%s: %s", verdict.reason, verdict.message)
        return self._found()

    @property
    def _name(self) -> tuple[str, str]:
        return self.namespace, self.release_name

    def _wanted(self) -> int:
        if self.revision in (None, "", "None"):
            return 1
        try:
            return int(str(self.revision))
        except ValueError as error:
            raise SpecError(f"{self.revision!r} is not a revision", field="revision", remedy="a number") from error

    def _newest(self) -> StoredRevision | None:
        from gpu_fleet.hooks.helm.hook import HelmHook

        history = HelmHook(self.access).history(self.release_name, self.namespace)
        return history[-1] if history else None

    def _manifest_args(self) -> dict[str, Any]:
        from gpu_fleet.hooks.helm.hook import HelmHook

        manifest = HelmHook(self.access).get_manifest(self.release_name, self.namespace)
        return {
            "workloads": list(workloads(manifest, self.namespace)),
            "passing": list(passing(manifest, self.namespace)),
            "crds": list(crds(manifest)),
        }

    def _found(self) -> dict[str, Any]:
        newest = self._newest()
        return {
            "release": self.release_name,
            "namespace": self.namespace,
            "revision": newest.revision if newest else None,
            "status": str(newest.status) if newest else None,
        }
