"""Why a workload is not up, from the objects themselves: the controller's events, the scheduler's messages, the states
of containers. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpu_fleet.core.kubernetes.containers import STUCK_WAITING, first_waiting, state, statuses
from gpu_fleet.core.kubernetes.injected import INJECTED, injected_trouble
from gpu_fleet.core.kubernetes.objects import conditions, created_at, epoch, event_time, finished, title_of
from gpu_fleet.core.kubernetes.workload_pods import Object, Scene, counting_pods, owned_by, pods_of, uid_of
from gpu_fleet.core.verdict import Verdict, failed, progressing

#: A container that crashed this often is broken, however young its pod is.
RESTARTS = 3


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
        and (event.get("involvedObject") or {}).get("uid") == uid_of(pod)
        and uid_of(pod)
    ]
    return min(times, default=0.0)


def refusal(workload: Object, scene: Scene) -> Verdict | None:
    """Why the controller cannot even create pods: its newest ``FailedCreate`` event (RuntimeClass, quota, …).

    Events outlive their cause by an hour, so one counts only while pods are missing and none has come since.
    """
    uids = {uid_of(workload), *(uid_of(item) for item in owned_by(scene.replica_sets, uid_of(workload)))}
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
            pods = counting_pods(workload, scene)
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
