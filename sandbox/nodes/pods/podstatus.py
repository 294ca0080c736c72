"""A pod's status out of its containers' states, after kubernetes/kubernetes ``pkg/kubelet/status/generate.go``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
_OWN_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


@dataclass
class ContainerState:
    """One container as the API shows it.

    :ivar state: ``{"waiting": …}``, ``{"running": …}`` or ``{"terminated": …}``.
    :ivar done: it has ended and will not be started again.
    """

    name: str
    image: str
    image_id: str = ""
    container_id: str = ""
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: Object = field(default_factory=dict)
    ready: bool = False
    restarts: int = 0
    done: bool = False
    ever_started: bool = False

    @property
    def running(self) -> bool:
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])

    def show(self) -> Object:
        shown = {
            "name": self.name,
            "image": self.image,
            "imageID": self.image_id,
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready,
            "started": self.running,
            "restartCount": self.restarts,
        }
        return shown | ({"containerID": self.container_id} if self.container_id else {})


@dataclass(frozen=True)
class PodFacts:
    """
    :ivar verdict: ``(phase, reason, message)`` when the kubelet has given up on the pod, regardless of its containers.
    :ivar sandboxed: the pod has its network.
    :ivar stopping: the verdict is known and its containers are being stopped: the phase is not terminal before that.
    """

    init: list[ContainerState]
    sidecars: list[ContainerState]
    main: list[ContainerState]
    pod_ip: str
    host_ip: str
    start_time: str
    sandboxed: bool
    verdict: tuple[str, str, str] | None = None
    stopping: bool = False


def phase_of(facts: PodFacts) -> str:
    """Running as soon as one container of the pod itself has ever run; finished when none will run again."""
    if facts.verdict is not None:
        return "Running" if facts.stopping else facts.verdict[0]
    if any(state.done and state.exit_code != 0 for state in facts.init):
        return "Failed"
    if facts.main and all(state.done for state in facts.main):
        return "Succeeded" if all(state.exit_code == 0 for state in facts.main) else "Failed"
    return "Running" if any(state.ever_started for state in facts.main) else "Pending"


def status_of(pod: Object, facts: PodFacts, moment: str) -> Object:
    """The whole status that the kubelet owns; conditions of others (the scheduler's, evictions) are kept.

    :param moment: the time to write into conditions that change.
    """
    phase = phase_of(facts)
    rejected = facts.verdict is not None and not facts.sandboxed
    status: Object = {
        "phase": phase,
        "startTime": facts.start_time,
        "hostIP": facts.host_ip,
        "hostIPs": [{"ip": facts.host_ip}],
        "conditions": _conditions(pod, facts, phase, moment),
        "observedGeneration": pod["metadata"].get("generation", 1),
    }
    if not rejected:
        # By name, not in the order of the spec (pkg/kubelet/kubelet_pods.go, convertToAPIContainerStatuses).
        status["containerStatuses"] = [state.show() for state in sorted(facts.main, key=lambda each: each.name)]
        if facts.init or facts.sidecars:
            by_name = {state.name: state for state in [*facts.init, *facts.sidecars]}
            order = [container["name"] for container in pod["spec"].get("initContainers") or []]
            status["initContainerStatuses"] = [by_name[name].show() for name in order if name in by_name]
    if facts.sandboxed:
        status |= {"podIP": facts.pod_ip, "podIPs": [{"ip": facts.pod_ip}]}
    if facts.verdict is not None:
        status |= {"reason": facts.verdict[1], "message": facts.verdict[2]}
    return status


def _conditions(pod: Object, facts: PodFacts, phase: str, moment: str) -> list[Object]:
    before = {item["type"]: item for item in (pod.get("status") or {}).get("conditions") or []}
    over = phase in ("Succeeded", "Failed")
    initialized = all(state.exit_code == 0 for state in facts.init) and all(state.running for state in facts.sidecars)
    unready = [state.name for state in [*facts.sidecars, *facts.main] if not state.ready]
    incomplete = [state.name for state in facts.init if state.exit_code != 0]
    completed = {"reason": "PodCompleted"} if phase == "Succeeded" else {"reason": "PodFailed"}
    not_ready = {"reason": "ContainersNotReady", "message": f"containers with unready status: [{' '.join(unready)}]"}
    not_initialized = {
        "reason": "ContainersNotInitialized",
        "message": f"containers with incomplete status: [{' '.join(incomplete)}]",
    }
    ready = not unready and not over
    wanted: dict[str, tuple[bool, Object]] = {
        "PodReadyToStartContainers": (facts.sandboxed and not over, {}),
        "Initialized": (initialized or phase == "Succeeded", completed if phase == "Succeeded" else not_initialized),
        "Ready": (ready, completed if over else not_ready),
        "ContainersReady": (ready, completed if over else not_ready),
        "PodScheduled": (True, {}),
    }
    shown = []
    for name in _OWN_CONDITIONS:
        value, why = wanted[name]
        status = "True" if value else "False"
        old = before.get(name) or {}
        changed = moment if old.get("status") != status else old.get("lastTransitionTime", moment)
        reason = {} if value and name != "Initialized" else why
        if value and not (name == "Initialized" and phase == "Succeeded"):
            reason = {}
        shown.append({"type": name, "status": status, "lastProbeTime": None, "lastTransitionTime": changed} | reason)
    return shown + [item for name, item in before.items() if name not in _OWN_CONDITIONS]
