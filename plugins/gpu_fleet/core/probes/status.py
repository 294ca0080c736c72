"""What the status of a probe's pod says about the probe itself: about its own container, by name.

Admission webhooks add containers to pods, and the kubelet lists all of them in the order of their names. A sidecar
never ends, so a pod with one never does: what counts is the probe's container. Our probes have no init containers, so
any init container was added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.kubernetes.containers import NOT_BEGUN
from gpu_fleet.core.kubernetes.objects import finished

#: The name of a probe's container.
PROBE_CONTAINER = "probe"


def own_state(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the probe's container; empty while the kubelet has reported none."""
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        if container.get("name") == PROBE_CONTAINER:
            return dict(container.get("state") or {})
    return {}


def has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether the probe's container has ended, or its pod as a whole."""
    return finished(pod) or bool(own_state(pod).get("terminated"))


def waiting_reason(pod: Mapping[str, Any]) -> tuple[str, str] | None:
    """Reason and message for which the probe's container waits; those of an added init container that it waits for."""
    waiting = own_state(pod).get("waiting")
    if not waiting:
        return None
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason in NOT_BEGUN:
        for name, state in _added(pod):
            if before := state.get("waiting"):
                cause = str(before.get("reason", ""))
                if cause not in NOT_BEGUN:
                    return cause, f"added init container {name}: {before.get('message', '')}".rstrip(": ")
    return reason, message


def failed_before(pod: Mapping[str, Any]) -> str:
    """What a container that an admission webhook added did so that the probe never started; empty if nothing."""
    own = own_state(pod)
    if own and not own.get("waiting"):
        return ""
    for name, state in _added(pod):
        ended = state.get("terminated") or {}
        if ended.get("exitCode"):
            words = f"{ended.get('reason', '')} {ended.get('message', '')}".strip()
            return f"init container {name} ended with status {ended['exitCode']}" + (f": {words}" if words else "")
    return ""


def _added(pod: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    return [(str(item.get("name", "")), dict(item.get("state") or {})) for item in statuses]
