"""Containers that an admission webhook has added to the device plugin's pods, known by their names. Pure.

A container that never becomes Ready keeps its pod from being Ready and says nothing about the plugin: no release is
rolled back because of it, and no node is quarantined. A pod whose containers are not those of the chart is not judged
here.

Source of the names: NVIDIA/k8s-device-plugin v0.20.0 ``deployments/helm/nvidia-device-plugin/templates``
(``daemonset-device-plugin.yml``, ``daemonset-mps-control-daemon.yml``, ``daemonset-gfd.yml``). When a pod counts as
Ready: kubernetes v1.35 ``pkg/kubelet/status/generate.go``; init containers run one after the other, those with
``restartPolicy: Always`` keep running (https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.containers import NOT_BEGUN, STUCK_WAITING, state
from gpu_fleet.core.kubernetes.objects import Object, condition, epoch, is_true, name_of

#: The reason wherever such a container is what is wrong.
INJECTED = "InjectedContainerNotReady"

#: The chart's main containers -> what the chart puts beside them.
_CHART = {
    "nvidia-device-plugin-ctr": ("nvidia-device-plugin-init", "nvidia-device-plugin-sidecar"),
    "mps-control-daemon-ctr": ("mps-control-daemon-mounts", "mps-control-daemon-init", "mps-control-daemon-sidecar"),
    "gpu-feature-discovery-ctr": ("gpu-feature-discovery-init", "gpu-feature-discovery-sidecar"),
}
#: A container that crashed this often is broken.
_RESTARTS = 3


@dataclass(frozen=True)
class Injected:
    """
    :ivar pod: ``namespace/name``.
    :ivar why: reason and message, in the kubelet's words.
    :ivar stuck: the container will not become ready by itself if it has been in this state for long.
    :ivar since: epoch seconds from which it has been so; ``None`` if the pod does not show it.
    :ivar runs: it runs, and is not ready.
    :ivar blocks: it is an init container, so that the plugin's own containers have not begun.
    """

    pod: str
    container: str
    why: str
    stuck: bool
    blocks: bool
    since: float | None = None
    runs: bool = False

    def __str__(self) -> str:
        return (
            f"container {self.container} of pod {self.pod}, which the chart does not have and an admission webhook has "
            f"added, is not ready: {self.why}"
        )


def injected_trouble(pod: Object) -> Injected | None:
    """The added container that keeps a pod of the device plugin from being Ready.

    ``None`` if it is Ready, if it is not of the chart, if it is only starting, or if a container of its own is in
    trouble: that is the deeper cause.
    """
    own = _own_names(pod)
    if not own or is_true(pod, "Ready"):
        return None
    status = pod.get("status") or {}
    before, main = list(status.get("initContainerStatuses") or []), list(status.get("containerStatuses") or [])
    if any(_broken(item, item in before) for item in (*before, *main) if item.get("name") in own):
        return None
    waiting = any(_not_begun(item) for item in main if item.get("name") in own)
    if waiting:
        # Containers run after all init containers, which run in the pod's order: the first that is not done is it.
        first = next((item for item in _in_order(pod, before) if not _done(item, init=True)), None)
        return None if first is None or first.get("name") in own else _of(pod, first, blocks=True)
    added = [item for item in (*before, *main) if item.get("name") not in own and not _done(item, item in before)]
    return _of(pod, added[0], blocks=False) if added else None


def _own_names(pod: Object) -> set[str]:
    """Names of the pod's own containers; empty if it is not of the chart."""
    listed = [
        *((pod.get("spec") or {}).get("containers") or []),
        *((pod.get("status") or {}).get("containerStatuses") or []),
    ]
    mains = {str(item.get("name")) for item in listed} & _CHART.keys()
    return mains | {name for main in mains for name in _CHART[main]}


def _in_order(pod: Object, statuses: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Statuses in the order in which the pod's init containers run; the kubelet lists them by name."""
    order = [str(item.get("name")) for item in (pod.get("spec") or {}).get("initContainers") or []]
    return sorted(
        statuses, key=lambda item: order.index(str(item.get("name"))) if item.get("name") in order else len(order)
    )


def _not_begun(item: Mapping[str, Any]) -> bool:
    waiting = state(item, "waiting")
    return not item.get("state") or (waiting is not None and str(waiting.get("reason") or "") in NOT_BEGUN)


def _done(item: Mapping[str, Any], init: bool) -> bool:
    """Whether the pod no longer waits for the container: it is ready, or an init container that has succeeded."""
    ended = state(item, "terminated")
    return bool(item.get("ready")) or (init and ended is not None and not ended.get("exitCode"))


def _broken(item: Mapping[str, Any], init: bool) -> bool:
    """Whether a container of the plugin's own is in trouble."""
    return not _done(item, init) and not _not_begun(item)


def _of(pod: Object, item: Mapping[str, Any], *, blocks: bool) -> Injected:
    waiting, ended = state(item, "waiting"), state(item, "terminated")
    restarts = int(item.get("restartCount") or 0)
    if waiting is not None:
        reason = str(waiting.get("reason") or "waiting")
        why = f"{reason}: {waiting.get('message') or ''}".rstrip(": ")
        stuck = reason in STUCK_WAITING
    elif ended is not None:
        why, stuck = f"it ended with exit code {ended.get('exitCode')}", False
    else:
        # An init container that is no sidecar works, and ends when it has done.
        why = "it runs and has not ended" if blocks and not _is_sidecar(pod, item) else "it runs and is not ready"
        stuck = not _not_begun(item) and (not blocks or _is_sidecar(pod, item))
    namespace = (pod.get("metadata") or {}).get("namespace")
    name = f"{namespace}/{name_of(pod)}" if namespace else name_of(pod)
    known = [
        epoch((state(item, "running") or {}).get("startedAt")),
        epoch((condition(pod, "Ready") or {}).get("lastTransitionTime")),
    ]
    since = max((moment for moment in known if moment is not None), default=None)
    return Injected(
        name,
        str(item.get("name")),
        why,
        stuck or restarts >= _RESTARTS,
        blocks,
        since,
        waiting is None and ended is None,
    )


def _is_sidecar(pod: Object, item: Mapping[str, Any]) -> bool:
    listed = (pod.get("spec") or {}).get("initContainers") or []
    return any(each.get("name") == item.get("name") and each.get("restartPolicy") == "Always" for each in listed)
