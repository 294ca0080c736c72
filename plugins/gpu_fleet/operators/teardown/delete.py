"""Deletes objects of the package, and waits until they are gone if asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gpu_fleet.core.errors import Conflict, SpecError
from gpu_fleet.core.kubernetes.kinds import EC2_NODE_CLASS, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, RUNTIME_CLASS_NAME
from gpu_fleet.core.teardown.remains import left_classes
from gpu_fleet.operators.base import FleetOperator, wait_started
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER
from gpu_fleet.operators.teardown.looks import decide_again
from gpu_fleet.triggers.waiting import await_gate, conclude


class DeleteObjectsOperator(FleetOperator):
    """Deletes what a builder would apply, or the objects named; what is absent counts as done.

    :param builder: name in ``core.manifests.build.BUILDERS``; or
    :param refs: ``[{"apiVersion", "kind", "name", "namespace"}, ...]``. Exactly one of the two.
    :param builder_args: the builder's arguments besides the spec; templated.
    :param propagation: Background, Foreground or Orphan.
    :param only_ours: keep (and report) objects without the package's label: others made them.
    :param wait: defer until the objects are gone, at most the spec's ``deadlines.teardown``.
    :returns: ``{"deleted": [...], "absent": [...], "kept": [...]}``, objects in words.
    """

    preconditions = CHANGES_CLUSTER
    template_fields = ("builder", "builder_args", "refs")
    template_fields_renderers: ClassVar[dict[str, str]] = {"builder_args": "json", "refs": "json"}
    ui_color = "#fbe9e7"

    def __init__(
        self,
        *,
        builder: str | None = None,
        refs: Sequence[Mapping[str, Any]] | None = None,
        builder_args: Mapping[str, Any] | None = None,
        propagation: str = "Background",
        only_ours: bool = True,
        wait: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.builder = builder
        self.refs = refs
        self.builder_args = dict(builder_args or {})
        self.propagation = propagation
        self.only_ours = only_ours
        self.wait = wait

    def act(self, context: Mapping[str, Any]) -> dict[str, list[str]]:
        report: dict[str, list[str]] = {"deleted": [], "absent": [], "kept": []}
        going: list[dict[str, Any]] = []
        for ref in self._targets():
            outcome, uid = self._delete(ref)
            report[outcome].append(str(ref))
            self.log.info("%s: %s", ref, outcome)
            if outcome == "deleted":
                going.append(_as_json(ref, uid))
        if self.wait and going:
            started, seconds = wait_started(context), self.spec.deadlines.teardown.seconds
            await_gate(
                self,
                context,
                "object_gone",
                {"objects": going},
                seconds,
                "finish",
                deadline=started + seconds,
                started=started,
                kwargs={"report": report},
            )
        return report

    def finish(
        self,
        context: Mapping[str, Any],  # noqa: ARG002
        event: Mapping[str, Any],
        report: dict[str, list[str]],
    ) -> dict[str, list[str]]:
        """Called when the objects are gone, or the deadline has passed."""
        self.log.info(conclude(event).message)
        return report

    def _targets(self) -> list[ObjectRef]:
        if (self.builder is None) == (self.refs is None):
            raise SpecError(
                f"task {self.task_id}: give either builder or refs", field="builder", remedy="correct the DAG"
            )
        if self.builder is not None:
            from gpu_fleet.operators.manifests import build_manifests

            manifests = build_manifests(self.task_id, self.builder, self.spec, self.builder_args)
            named = [{**m, **m["metadata"]} for m in manifests]
        else:
            named = [dict(ref) for ref in self.refs or []]
        return [self.kube.ref(ref["apiVersion"], ref["kind"], ref["name"], ref.get("namespace")) for ref in named]

    def _delete(self, ref: ObjectRef) -> tuple[str, str | None]:
        found = self.kube.get(ref)
        if found is None:
            return "absent", None
        metadata = found["metadata"]
        if self.only_ours and LABEL_CLUSTER not in (metadata.get("labels") or {}):
            self.log.warning("kept %s: it lacks the label %s, so it is not ours", ref, LABEL_CLUSTER)
            return "kept", None
        uid = metadata.get("uid")
        try:
            self.kube.delete(ref, propagation=self.propagation, uid=uid)
        except Conflict as error:
            # Deleted and created again by another client: the new object is not the one to delete.
            self.log.warning("kept %s: another object of that name has replaced it: %s", ref, error)
            return "kept", None
        return "deleted", uid


class DeleteNodeClassesOperator(DeleteObjectsOperator):
    """Deletes the cluster's EC2NodeClasses by label: a pool that the file no longer has may have left its class.

    Those of pools with ``manage: false`` are kept.

    :returns: as the base class.
    """

    def _targets(self) -> list[ObjectRef]:
        found = self.kube.list(EC2_NODE_CLASS, label_selector=f"{LABEL_CLUSTER}={self.spec.name}")
        kept = [pool.name for pool in self.spec.node_pools if not pool.manage]
        names = [item["metadata"]["name"] for item in left_classes(found, self.spec.name, kept)]
        return [ObjectRef(EC2_NODE_CLASS, name) for name in sorted(names)]


class DeleteRuntimeClassOperator(DeleteObjectsOperator):
    """Deletes the RuntimeClass ``nvidia``, unless the plan keeps it or others need it by now.

    :param plan_task_id: the task whose plan decides on it; ``None`` outside a teardown. See ``core/teardown/keeps.py``.
    :returns: as the base class; ``kept`` names the class if it is kept, and ``why`` gives the reasons.
    :raises PermanentError: ``NoPlan`` if that task has no result.
    """

    def __init__(self, *, plan_task_id: str | None = None, **kwargs: Any) -> None:
        ref = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "name": RUNTIME_CLASS_NAME}
        super().__init__(refs=[ref], **kwargs)
        self.plan_task_id = plan_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, list[str]]:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.teardown.keeps import stays

        if why := decide_again(self.spec, self.kube, context, self.plan_task_id).runtime_class:
            self.log.warning(stays(f"RuntimeClass {RUNTIME_CLASS_NAME}", why))
            kept = [str(ref) for ref in self._targets()]
            return {"deleted": [], "absent": [], "kept": kept, "why": list(why)}
        return super().act(context)


def _as_json(ref: ObjectRef, uid: str | None) -> dict[str, Any]:
    return {
        "apiVersion": ref.kind.api_version,
        "kind": ref.kind.kind,
        "plural": ref.kind.plural,
        "namespaced": ref.kind.namespaced,
        "name": ref.name,
        "namespace": ref.namespace,
        "uid": uid,
    }
