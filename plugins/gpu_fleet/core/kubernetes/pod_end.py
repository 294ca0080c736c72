"""How a pod ends, and who would start it again: total functions over plain JSON objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.kubernetes.dead_nodes import DEFAULT_GRACE_S

Pod = Mapping[str, Any]


def is_finished(pod: Pod) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def controller_of(pod: Pod) -> Mapping[str, Any] | None:
    """The ownerReference that controls the pod."""
    for owner in pod["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            found: Mapping[str, Any] = owner
            return found
    return None


def grace_of(pod: Pod, asked: int = -1) -> float:
    """Seconds between a pod's SIGTERM and its SIGKILL.

    :param asked: what the deletion asks for (``drain.gracePeriod``); negative: the pod's own.
    """
    if asked >= 0:
        return float(asked)
    own = (pod.get("spec") or {}).get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE_S if own is None else float(own)


def has_stopped(pod: Pod) -> bool:
    """Whether nothing of the pod runs any more, although the object may stay, for example because of a finalizer.

    A pod without container statuses has not been started: it counts as running, since its kubelet may be about to.
    """
    if is_finished(pod):
        return True
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return bool(statuses) and all("terminated" in (status.get("state") or {}) for status in statuses)
