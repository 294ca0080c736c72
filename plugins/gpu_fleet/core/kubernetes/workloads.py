"""Is a workload up? Deployments, DaemonSets, StatefulSets and Jobs of any chart. Pure.

Counts are those of kubectl's rollout status (kubernetes/kubectl pkg/polymorphichelpers/rollout_status.go). If it is not
up, :mod:`gpu_fleet.core.kubernetes.workload_causes` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_fleet.core.kubernetes.conditions import outdated, sentence
from gpu_fleet.core.kubernetes.objects import conditions, deleting, title_of
from gpu_fleet.core.kubernetes.workload_causes import container_ended, why
from gpu_fleet.core.kubernetes.workload_pods import Object, Scene, counting_pods, on_delete, pods_of, suspects
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

#: Reasons of a workload that wants no pod: nothing is wrong with it, and nothing is shown to work.
NO_NODE_MATCHES = "NoNodeMatches"
SCALED_TO_ZERO = "ScaledToZero"
IDLE = frozenset({NO_NODE_MATCHES, SCALED_TO_ZERO})
#: Every pod is up, but only a person replaces them (``OnDelete``, or a partition above all of them) and has not yet.
NOT_REPLACED = "PodsNotReplaced"
#: Reasons of a READY verdict after which nothing of the revision has been seen to run.
UNPROVEN = IDLE | {NOT_REPLACED}


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


def _to_be_updated(workload: Object, wanted: int) -> int:
    """How many of the replicas the controller replaces by itself.

    A StatefulSet's partition keeps the lower ordinals at their old revision (kubernetes
    pkg/controller/statefulset/stateful_set_utils.go ``isCurrentRevisionNeeded``: counted from the first ordinal).
    """
    if on_delete(workload):
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
    pods = counting_pods(workload, scene)
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
            why(workload, suspects(workload, scene), scene),
            conditions(workload).get("ReplicaFailure", {}),
        )
        detail = f"; {cause.message}" if cause else ""
        if not cause and refused.get("status") == "True":  # its events live for an hour, the condition stays
            detail = f"; {sentence(refused)}"
        return failed("ProgressDeadlineExceeded", f"{message}: {sentence(stuck)}{detail}")
    return _explained("RollingOut", message, workload, suspects(workload, scene), scene)


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
