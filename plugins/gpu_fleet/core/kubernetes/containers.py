"""Container states in a pod's status, as the kubelet writes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: Why a container waits that the kubelet has not begun to start yet (kubernetes pkg/kubelet/kubelet_pods.go).
NOT_BEGUN = frozenset({"", "ContainerCreating", "PodInitializing"})

#: Container waiting reasons that do not pass by themselves (kubernetes pkg/kubelet/images/types.go and
#: pkg/kubelet/kuberuntime). ``ErrImagePull`` is not among them: a hiccup, or it becomes ``ImagePullBackOff``.
STUCK_WAITING = frozenset(
    {
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)


class Waiting(NamedTuple):
    """A container that waits for a cause worth naming.

    :ivar exit_code: of its last end; ``None`` if it has not ended yet.
    """

    container: str
    reason: str
    message: str
    restarts: int
    exit_code: int | None


def statuses(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The statuses of a pod's containers, init containers first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def state(container: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """A container's state of that kind (``waiting``, ``running``, ``terminated``), if it is in that one."""
    found = (container.get("state") or {}).get(kind)
    return found if isinstance(found, Mapping) else None


def first_waiting(pod: Mapping[str, Any]) -> Waiting | None:
    """The first container that waits for another reason than the containers before it."""
    for container in statuses(pod):
        waiting = state(container, "waiting") or {}
        reason = str(waiting.get("reason") or "")
        if reason not in NOT_BEGUN:
            return Waiting(
                str(container.get("name")),
                reason,
                str(waiting.get("message") or ""),
                int(container.get("restartCount") or 0),
                ((container.get("lastState") or {}).get("terminated") or {}).get("exitCode"),
            )
    return None
