"""The pods of a workload, and which of them are of its present template. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.conditions import outdated
from gpu_fleet.core.kubernetes.objects import created_at, deleting

Object = Mapping[str, Any]

#: Seconds that a cause must have lasted before it fails the gate, unless ``patience_s`` says otherwise: one failed
#: pull, or one crash while a dependency starts, is not a broken release.
PATIENCE_S = 30.0
#: The label by which a controller marks the pods of a revision of its template.
LABEL_REVISION = "controller-revision-hash"


@dataclass(frozen=True)
class Scene:
    """What surrounds the workloads of one namespace.

    :ivar now: epoch seconds.
    :ivar started: epoch seconds of the gate's first look.
    :ivar patience_s: see :data:`PATIENCE_S`.
    :ivar allow_unproven: a workload that wants no pod counts as ready; its verdict's reason is one of
        :data:`gpu_fleet.core.kubernetes.workloads.IDLE`.
    :ivar revisions: ControllerRevisions.
    """

    pods: Sequence[Object]
    replica_sets: Sequence[Object]
    events: Sequence[Object]
    now: float
    started: float
    patience_s: float = PATIENCE_S
    allow_unproven: bool = False
    revisions: Sequence[Object] = ()


def owned_by(objects: Iterable[Object], uid: str) -> list[Object]:
    """The objects whose controller has that UID; selectors lie where two workloads share one."""
    return [
        item
        for item in objects
        if any(owner.get("uid") == uid for owner in (item.get("metadata") or {}).get("ownerReferences") or [])
    ]


def uid_of(item: Object) -> str:
    return str((item.get("metadata") or {}).get("uid", ""))


def pods_of(workload: Object, scene: Scene) -> list[Object]:
    """The workload's pods that are there to stay; of a Deployment only those of its newest ReplicaSet."""
    if workload.get("kind") != "Deployment":
        owner = uid_of(workload)
    else:
        sets = owned_by(scene.replica_sets, uid_of(workload))
        if not sets:
            return []
        owner = uid_of(max(sets, key=_revision))
    return [pod for pod in owned_by(scene.pods, owner) if not deleting(pod)]


def _revision(replica_set: Object) -> tuple[int, float]:
    annotations = (replica_set.get("metadata") or {}).get("annotations") or {}
    text = str(annotations.get("deployment.kubernetes.io/revision", "0"))
    return (int(text) if text.isdigit() else 0, created_at(replica_set) or 0.0)


def revision_of(workload: Object, scene: Scene) -> str:
    """What the pods of a DaemonSet's or StatefulSet's present template bear in :data:`LABEL_REVISION`; empty: unknown.

    Of a DaemonSet it is the hash of its newest ControllerRevision: a rollback gives the old revision that it restores
    the highest number (kubernetes pkg/controller/daemon/update.go ``constructHistory``). The controller makes that
    revision before it reports the generation as observed. Of a StatefulSet it is the revision's name, which the status
    has (pkg/controller/statefulset/stateful_set_utils.go ``setPodRevision``).
    """
    if outdated(workload) is not None:
        return ""
    if workload.get("kind") == "StatefulSet":
        return str((workload.get("status") or {}).get("updateRevision") or "")
    newest = max(
        owned_by(scene.revisions, uid_of(workload)), key=lambda item: int(item.get("revision") or 0), default=None
    )
    labels = ((newest or {}).get("metadata") or {}).get("labels") or {}
    return str(labels.get(LABEL_REVISION) or "")


def is_current(pod: Object, workload: Object, scene: Scene) -> bool:
    """Whether a DaemonSet's or StatefulSet's pod was made from its present template.

    By the controller's own mark, never by comparing the pod with the template: admission webhooks rewrite images and
    add variables, labels and containers to pods, which still are of the present template.
    """
    revision = revision_of(workload, scene)
    labels = (pod.get("metadata") or {}).get("labels") or {}
    return bool(revision) and labels.get(LABEL_REVISION) == revision


def counting_pods(daemon_set: Object, scene: Scene) -> list[Object]:
    """A DaemonSet's pods less those that the controller replaces by itself."""
    pods = pods_of(daemon_set, scene)
    return pods if on_delete(daemon_set) else [pod for pod in pods if is_current(pod, daemon_set, scene)]


def suspects(workload: Object, scene: Scene) -> list[Object]:
    """The pods that may explain why a rollout does not end: the new ones, or the old ones that it waits for."""
    pods = pods_of(workload, scene)
    if workload.get("kind") != "StatefulSet":
        return pods
    return [pod for pod in pods if is_current(pod, workload, scene)] or pods


def on_delete(workload: Object) -> bool:
    """Whether only a person replaces the pods of an earlier revision, so that no rollout ever ends by itself."""
    return ((workload.get("spec") or {}).get("updateStrategy") or {}).get("type") == "OnDelete"
