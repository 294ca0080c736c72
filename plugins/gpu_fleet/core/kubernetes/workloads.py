"""Is a workload up, and if not: why? Deployments, DaemonSets, StatefulSets and Jobs of any chart. Pure.

Counts are those of kubectl's rollout status (kubernetes/kubectl pkg/polymorphichelpers/rollout_status.go). The cause of
a failure is taken from the objects themselves: events of the controller, the scheduler's words, container states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.conditions import outdated, sentence
from gpu_fleet.core.kubernetes.containers import STUCK_WAITING, first_waiting, state, statuses
from gpu_fleet.core.kubernetes.injected import INJECTED, injected_trouble
from gpu_fleet.core.kubernetes.objects import conditions, created_at, deleting, epoch, event_time, finished, title_of
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

Object = Mapping[str, Any]

#: Seconds that a cause must have lasted before it fails the gate, unless ``patience_s`` says otherwise: one failed
#: pull, or one crash while a dependency starts, is not a broken release.
PATIENCE_S = 30.0
#: A container that crashed this often is broken, however young its pod is.
RESTARTS = 3
#: The label by which a controller marks the pods of a revision of its template.
LABEL_REVISION = "controller-revision-hash"
#: Reasons of a workload that wants no pod: nothing is wrong with it, and nothing is shown to work.
NO_NODE_MATCHES = "NoNodeMatches"
SCALED_TO_ZERO = "ScaledToZero"
IDLE = frozenset({NO_NODE_MATCHES, SCALED_TO_ZERO})
#: Every pod is up, but only a person replaces them (``OnDelete``, or a partition above all of them) and has not yet.
NOT_REPLACED = "PodsNotReplaced"
#: Reasons of a READY verdict after which nothing of the revision has been seen to run.
UNPROVEN = IDLE | {NOT_REPLACED}


@dataclass(frozen=True)
class Scene:
    """What surrounds the workloads of one namespace.

    :ivar now: epoch seconds; :ivar started: of the gate's first look; :ivar patience_s: see :data:`PATIENCE_S`.
    :ivar allow_unproven: a workload that wants no pod counts as ready; its verdict's reason is one of :data:`IDLE`.
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


def _uid(item: Object) -> str:
    return str((item.get("metadata") or {}).get("uid", ""))


def pods_of(workload: Object, scene: Scene) -> list[Object]:
    """The workload's pods that are there to stay; of a Deployment only those of its newest ReplicaSet."""
    if workload.get("kind") != "Deployment":
        owner = _uid(workload)
    else:
        sets = owned_by(scene.replica_sets, _uid(workload))
        if not sets:
            return []
        owner = _uid(max(sets, key=_revision))
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
        owned_by(scene.revisions, _uid(workload)), key=lambda item: int(item.get("revision") or 0), default=None
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


def _counting_pods(daemon_set: Object, scene: Scene) -> list[Object]:
    """A DaemonSet's pods less those that the controller replaces by itself."""
    pods = pods_of(daemon_set, scene)
    return pods if _on_delete(daemon_set) else [pod for pod in pods if is_current(pod, daemon_set, scene)]


def _suspects(workload: Object, scene: Scene) -> list[Object]:
    """The pods that may explain why a rollout does not end: the new ones, or the old ones that it waits for."""
    pods = pods_of(workload, scene)
    if workload.get("kind") != "StatefulSet":
        return pods
    return [pod for pod in pods if is_current(pod, workload, scene)] or pods


# --- causes ----------------------------------------------------------------------------------------------------------


def container_trouble(pod: Object) -> tuple[str, str, int] | None:
    """Reason, message and restarts of the first container that waits or ended for a cause worth naming."""
    found = first_waiting(pod)
    if found is None:
        return None
    detail = found.message + (f" (exit code {found.exit_code})" if found.exit_code is not None else "")
    return found.reason, detail.strip(), found.restarts


def container_ended(pod: Object) -> str:
    """How a pod's first container that failed has ended, in words; empty if none has."""
    for container in statuses(pod):
        ended = state(container, "terminated") or {}
        if ended.get("exitCode"):
            words = " ".join(str(ended[key]) for key in ("reason", "message") if ended.get(key))
            named = f"{title_of(pod)}, container {container.get('name')}"
            return f"{named}: exit code {ended['exitCode']}{f' ({words.strip()})' if words else ''}"
    return ""


def pod_trouble(pod: Object, scene: Scene) -> Verdict | None:
    """Why a pod is not running as it should; FAILED only for causes that do not pass and have lasted."""
    name = title_of(pod)
    since = max(
        epoch((pod.get("status") or {}).get("startTime")) or created_at(pod) or scene.started, _troubled(pod, scene)
    )
    if (injected := injected_trouble(pod)) is not None:
        stuck = injected.stuck and scene.now - max(since, injected.since or 0.0) >= scene.patience_s
        return (failed if stuck else progressing)(INJECTED, f"{name}: {injected}")
    trouble = container_trouble(pod)
    if trouble is not None:
        reason, detail, restarts = trouble
        message = f"{name}: {reason}" + (f": {detail}" if detail else "")
        if reason in STUCK_WAITING and (scene.now - since >= scene.patience_s or restarts >= RESTARTS):
            return failed(reason, message)
        return progressing(reason, message)
    status = pod.get("status") or {}
    if status.get("phase") == "Failed":
        return progressing(str(status.get("reason") or "PodFailed"), f"{name} failed: {status.get('message') or ''}")
    scheduled = conditions(pod).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return progressing(
            str(scheduled.get("reason") or "Unschedulable"), f"{name} is not scheduled: {scheduled.get('message')}"
        )
    return None


def _troubled(pod: Object, scene: Scene) -> float:
    """Epoch seconds of the pod's first failure according to its events; 0 without one.

    The pod's age is not enough: an image that takes minutes to pull may fail for the first time only then.
    """
    times = [
        epoch(event.get("firstTimestamp")) or event_time(event)
        for event in scene.events
        if event.get("reason") in {"Failed", "BackOff"}
        and (event.get("involvedObject") or {}).get("uid") == _uid(pod)
        and _uid(pod)
    ]
    return min(times, default=0.0)


def refusal(workload: Object, scene: Scene) -> Verdict | None:
    """Why the controller cannot even create pods: its newest ``FailedCreate`` event (RuntimeClass, quota, …).

    Events outlive their cause by an hour, so one counts only while pods are missing and none has come since.
    """
    uids = {_uid(workload), *(_uid(item) for item in owned_by(scene.replica_sets, _uid(workload)))}
    found = [
        event
        for event in scene.events
        if event.get("reason") == "FailedCreate" and (event.get("involvedObject") or {}).get("uid") in uids
    ]
    if not found:
        return None
    newest = max(found, key=event_time)
    if _refused_in_the_past(workload, event_time(newest), scene):
        return None
    message = f"{title_of(workload)}: no pod can be created: {newest.get('message')}"
    first = min(
        (value for event in found if (value := epoch(event.get("firstTimestamp")) or event_time(event))),
        default=scene.started,
    )
    if scene.now - max(first, created_at(workload) or first) >= scene.patience_s:
        return failed(_refusal_reason(str(newest.get("message", ""))), message)
    return progressing("FailedCreate", message)


def _refused_in_the_past(workload: Object, last: float, scene: Scene) -> bool:
    """
    :param last: epoch seconds of the newest refusal.
    """
    spec, pods = workload.get("spec") or {}, pods_of(workload, scene)
    match workload.get("kind"):
        case "DaemonSet":
            pods = _counting_pods(workload, scene)
            wanted = (workload.get("status") or {}).get("desiredNumberScheduled", 0)
        case "Job":
            wanted = spec.get("parallelism", 1)
        case _:
            wanted = spec.get("replicas", 1)
    return len(pods) >= wanted or any((created_at(pod) or 0.0) > last for pod in pods)


def _refusal_reason(message: str) -> str:
    for sign, reason in (
        ("RuntimeClass", "RuntimeClassMissing"),
        ("exceeded quota", "QuotaExceeded"),
        ("PriorityClass", "PriorityClassMissing"),
    ):
        if sign in message:
            return reason
    return "FailedCreate"


def why(workload: Object, pods: Sequence[Object], scene: Scene) -> Verdict | None:
    """The most telling cause: a failed one first, else any."""
    causes = [cause for pod in pods if not finished(pod) and (cause := pod_trouble(pod, scene)) is not None]
    refused = refusal(workload, scene)
    if refused is not None:
        causes.append(refused)
    return next((cause for cause in causes if cause.failed), causes[0] if causes else None)


# --- kinds -----------------------------------------------------------------------------------------------------------


def judge_workload(workload: Object, scene: Scene) -> Verdict:
    """The verdict on one workload of any of the four kinds."""
    name = title_of(workload)
    if deleting(workload):
        return progressing("Terminating", f"{name} is being deleted")
    kind = str(workload.get("kind"))
    if kind == "Job":
        return _job(workload, scene)
    if "observedGeneration" not in (workload.get("status") or {}):
        return progressing("NotObserved", f"{name}: no controller has looked at it yet")
    if old := outdated(workload):
        return old
    judge = {"DaemonSet": _daemon_set, "Deployment": _replicated, "StatefulSet": _replicated}.get(kind)
    if judge is None:
        return ready("NotAWorkload", f"{name} has nothing to wait for")
    return judge(workload, scene)


def _on_delete(workload: Object) -> bool:
    """Whether only a person replaces the pods of an earlier revision, so that no rollout ever ends by itself."""
    return ((workload.get("spec") or {}).get("updateStrategy") or {}).get("type") == "OnDelete"


def _to_be_updated(workload: Object, wanted: int) -> int:
    """How many of the replicas the controller replaces by itself.

    A StatefulSet's partition keeps the lower ordinals at their old revision (kubernetes
    pkg/controller/statefulset/stateful_set_utils.go ``isCurrentRevisionNeeded``: counted from the first ordinal).
    """
    if _on_delete(workload):
        return 0
    rolling = ((workload.get("spec") or {}).get("updateStrategy") or {}).get("rollingUpdate") or {}
    return max(0, wanted - int(rolling.get("partition") or 0))


def _up(name: str, message: str, *, replaced: bool) -> Verdict:
    """
    :param replaced: some pod is of the new revision.
    """
    if replaced:
        return ready("RolledOut", message)
    return ready(NOT_REPLACED, f"{message}; {name} replaces none by itself: delete its pods, or lower its partition")


def _number(status: Mapping[str, Any], field: str) -> int:
    return int(status.get(field) or 0)


def _explained(reason: str, message: str, workload: Object, pods: Sequence[Object], scene: Scene) -> Verdict:
    """Not ready yet; with the cause, if the objects show one."""
    cause = why(workload, pods, scene)
    if cause is None:
        return progressing(reason, message)
    return Verdict(cause.phase, cause.reason, f"{message}; {cause.message}", cause.permanent)


def _daemon_set(workload: Object, scene: Scene) -> Verdict:
    name, status = title_of(workload), workload.get("status") or {}
    desired = _number(status, "desiredNumberScheduled")
    if desired == 0:
        message = f"{name} wants no pod: no node matches it"
        return (ready if scene.allow_unproven else progressing)(NO_NODE_MATCHES, message)
    updated, available = _number(status, "updatedNumberScheduled"), _number(status, "numberAvailable")
    message = f"{name}: {available} of {desired} pods available, {updated} updated"
    needed = _to_be_updated(workload, desired)
    if updated >= needed and available >= desired:
        return _up(name, message, replaced=updated >= (needed or desired))
    pods = _counting_pods(workload, scene)
    return _explained("RollingOut", message, workload, pods, scene)


def _replicated(workload: Object, scene: Scene) -> Verdict:
    name, status = title_of(workload), workload.get("status") or {}
    wanted = (workload.get("spec") or {}).get("replicas", 1)
    if not wanted:
        message = f"{name} is scaled to 0 replicas"
        return (ready if scene.allow_unproven else progressing)(SCALED_TO_ZERO, message)
    updated = _number(status, "updatedReplicas")
    available = _number(status, "availableReplicas" if "availableReplicas" in status else "readyReplicas")
    total = _number(status, "replicas")
    message = f"{name}: {available} of {wanted} replicas available, {updated} updated"
    needed = _to_be_updated(workload, wanted)
    if updated >= needed and available >= wanted and total <= (updated if needed == wanted else wanted):
        return _up(name, message, replaced=updated >= (needed or wanted))
    stuck = conditions(workload).get("Progressing", {})
    if stuck.get("reason") == "ProgressDeadlineExceeded":
        cause, refused = (
            why(workload, _suspects(workload, scene), scene),
            conditions(workload).get("ReplicaFailure", {}),
        )
        detail = f"; {cause.message}" if cause else ""
        if not cause and refused.get("status") == "True":  # its events live for an hour, the condition stays
            detail = f"; {sentence(refused)}"
        return failed("ProgressDeadlineExceeded", f"{message}: {sentence(stuck)}{detail}")
    return _explained("RollingOut", message, workload, _suspects(workload, scene), scene)


def _job(workload: Object, scene: Scene) -> Verdict:
    name, known = title_of(workload), conditions(workload)
    if known.get("Complete", {}).get("status") == "True":
        return ready("JobComplete", f"{name} is complete")
    broken = known.get("Failed", {})
    if broken.get("status") == "True":
        pods = pods_of(workload, scene)
        ended = next((text for pod in pods if (text := container_ended(pod))), "")
        message = f"{name} failed: {broken.get('message') or ''}{f'; {ended}' if ended else ''}"
        return failed(str(broken.get("reason") or "JobFailed"), message)
    return _explained("JobRunning", f"{name} is not complete yet", workload, pods_of(workload, scene), scene)
