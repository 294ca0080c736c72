"""Server-side apply of manifests that the core builds from the frozen spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpu_fleet.core.errors import FieldConflict
from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.manifests import as_yaml, build_manifests
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER


class ApplyManifestsOperator(FleetOperator):
    """Applies the manifests of a builder, in order. An object that is already as it should be keeps its generation.

    :param builder: name in ``core.manifests.build.BUILDERS``.
    :param builder_args: its arguments besides the spec; templated.
    :param force: take over fields that another field manager owns. Off by default: the other manager set them on
        purpose.
    :returns: ``{"created": [...], "changed": [...], "unchanged": [...]}``, objects in words.
    :raises FieldConflict: naming the other manager and the fields.

    The applied manifests are shown among the task's rendered fields.
    """

    preconditions = CHANGES_CLUSTER
    template_fields = ("builder", "builder_args", "manifests")
    template_fields_renderers: ClassVar[dict[str, str]] = {"builder_args": "json", "manifests": "yaml"}
    #: Airflow renders fields before execute(); this makes it store them again afterwards, with the manifests.
    overwrite_rtif_after_execution = True
    ui_color = "#fdf3e3"

    def __init__(
        self, *, builder: str, builder_args: Mapping[str, Any] | None = None, force: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.builder = builder
        self.builder_args = dict(builder_args or {})
        self.force = force
        self.manifests = ""

    def act(self, context: Mapping[str, Any]) -> dict[str, list[str]]:  # noqa: ARG002
        manifests = build_manifests(self.task_id, self.builder, self.spec, self.builder_args)
        self.manifests = as_yaml(manifests)
        report: dict[str, list[str]] = {"created": [], "changed": [], "unchanged": []}
        for manifest in manifests:
            outcome, name = self._apply(manifest)
            report[outcome].append(name)
            self.log.info("%s: %s", name, outcome)
        return report

    def _apply(self, manifest: dict[str, Any]) -> tuple[str, str]:
        metadata = manifest["metadata"]
        ref = self.kube.ref(manifest["apiVersion"], manifest["kind"], metadata["name"], metadata.get("namespace"))
        before = self.kube.get(ref)
        try:
            after = self.kube.apply(manifest, force=self.force)
        except FieldConflict as error:
            raise FieldConflict(
                f"{error.message}; leave these fields to that manager (change the spec), make it release them, or give "
                f"task {self.task_id} force=True to take them over",
                reason=error.reason,
            ) from error
        if before is None:
            return "created", str(ref)
        same = before["metadata"].get("resourceVersion") == after["metadata"].get("resourceVersion")
        return ("unchanged" if same else "changed"), str(ref)
