"""Why a Ready node has no GPUs, found in the device plugin's pods and events.

Every reason about the plugin begins with :data:`PLUGIN_CAUSE`, so that remediation can distinguish a broken release,
which is rolled back, from EC2 having no capacity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpu_fleet.core.kubernetes.containers import STUCK_WAITING, first_waiting
from gpu_fleet.core.kubernetes.injected import INJECTED, injected_trouble
from gpu_fleet.core.kubernetes.names import DEVICE_PLUGIN_RELEASE, GPU_RESOURCE, LABEL_DEVICE_PLUGIN, SERVED
from gpu_fleet.core.kubernetes.objects import (
    Object,
    PoolNode,
    condition,
    deleting,
    epoch,
    event_time,
    name_of,
    node_of,
)
from gpu_fleet.core.manifests.plugin_entries import is_mps
from gpu_fleet.core.verdict import Verdict, failed, progressing

if TYPE_CHECKING:
    from gpu_fleet.core.spec import DevicePlugin

#: Prefix of every reason that blames the device plugin.
PLUGIN_CAUSE = "DevicePlugin"

#: Seconds that a stuck reason must have lasted: one failed pull or one crash on a new node is no reason to roll back.
STUCK_PATIENCE_S = 30.0

DEVICE_PLUGIN_CHART = "nvidia-device-plugin"

#: Part of the name of the chart's DaemonSet for MPS (k8s-device-plugin templates/daemonset-mps-control-daemon.yml).
MPS_DAEMON = "mps-control-daemon"
#: Other DaemonSets of the same chart, whose pods share labels with the plugin's.
_OTHERS = (MPS_DAEMON, "feature-discovery")
#: Behind :data:`PLUGIN_CAUSE`: the MPS control daemon, a DaemonSet of the same release, is what fails.
MPS_DAEMON_REASON = "MpsDaemon"
#: Reasons for which the plugin's own pod shows no cause.
_SILENT = frozenset(
    {f"{PLUGIN_CAUSE}Starting", f"{PLUGIN_CAUSE}NotRegistering", f"{PLUGIN_CAUSE}CrashLoopBackOff"}
    | {"ResourceNotRegistered"}
)


def plugin_blamed(reason: str) -> bool:
    """Whether a verdict's reason is about the device plugin."""
    return reason.startswith(PLUGIN_CAUSE)


def plugin_daemon_set(plugin: DevicePlugin) -> str:
    """The name of the DaemonSet that our release installs; empty if others manage the plugin.

    Source: the chart's ``nvidia-device-plugin.fullname`` (k8s-device-plugin ``templates/_helpers.tpl``).
    """
    if not plugin.manage:
        return ""
    full, name = plugin.values.get("fullnameOverride"), plugin.values.get("nameOverride") or DEVICE_PLUGIN_CHART
    if not full:
        known = str(name) in DEVICE_PLUGIN_RELEASE
        full = DEVICE_PLUGIN_RELEASE if known else f"{DEVICE_PLUGIN_RELEASE}-{name}"
    return str(full)[:63].removesuffix("-")


def plugin_pods(pods: Iterable[Object], daemon_set: str = "") -> list[Object]:
    """The device plugin's own pods, found by their owner: all DaemonSets of the chart have the same selector.

    :param daemon_set: see :func:`plugin_daemon_set`; the namespace (for example kube-system) may have pods that do not
        belong to the plugin. Without a name the pods of every DaemonSet count, except those known not to be plugins.
    """
    if daemon_set:
        return [pod for pod in pods if _owner(pod) == daemon_set]
    return [pod for pod in pods if _owner(pod) and not any(other in _owner(pod) for other in _OTHERS)]


def _owner(pod: Object) -> str:
    for owner in (pod.get("metadata") or {}).get("ownerReferences") or []:
        if owner.get("kind") == "DaemonSet":
            return str(owner.get("name", ""))
    return ""


def serving_pod(node: str, pods: Iterable[Object], daemon_set: str = "") -> Object | None:
    """The newest of the plugin's pods on a node; ``None`` without one. For the arguments see :func:`plugin_pods`."""
    mine = [pod for pod in plugin_pods(pods, daemon_set) if node_of(pod) == node]
    return max(mine, key=lambda pod: str((pod.get("metadata") or {}).get("creationTimestamp", "")), default=None)


def container_started(pod: Object) -> float | None:
    """Epoch seconds at which the running container that started last did so; ``None`` if none runs."""
    states = [container.get("state") or {} for container in (pod.get("status") or {}).get("containerStatuses") or []]
    starts = [epoch((state.get("running") or {}).get("startedAt")) for state in states]
    return max((start for start in starts if start is not None), default=None)


def initialized_at(node: str, claims: Iterable[Object]) -> float | None:
    """Epoch seconds at which Karpenter found a node's GPUs registered; ``None`` without a NodeClaim that says so."""
    for claim in claims:
        if (claim.get("status") or {}).get("nodeName") == node:
            entry = condition(claim, "Initialized") or {}
            return epoch(entry.get("lastTransitionTime")) if entry.get("status") == "True" else None
    return None


def mps_daemon_trouble(node: PoolNode, pods: Iterable[Object]) -> tuple[str, str, int] | None:
    """Why the MPS control daemon of a node that shares by MPS does not serve: reason, sentence, restarts; ``None`` if
    it does, or if the node's config entry is another one.

    Without the daemon the plugin never registers a GPU, and its pod is Ready all the same: it asks for the daemon's
    health every 30 s (NVIDIA/k8s-device-plugin v0.20.0 internal/plugin/mps.go ``waitForDaemon``,
    cmd/nvidia-device-plugin/main.go ``startPlugins``). So the cause is found in this pod, and not in the plugin's own.
    """
    if not is_mps(node.entry):
        return None
    mine = [pod for pod in pods if MPS_DAEMON in _owner(pod) and node_of(pod) == node.name and not deleting(pod)]
    if not mine:
        return "Absent", f"node {node.name} has no pod of the MPS control daemon", 0
    pod = max(mine, key=lambda pod: str((pod.get("metadata") or {}).get("creationTimestamp", "")))
    waiting = _waiting(pod)
    if waiting is not None:
        reason, detail, restarts = waiting
        words = f"MPS control daemon {name_of(pod)} of node {node.name} is in {reason}: {detail}".rstrip(": ")
        return reason, words, restarts
    if (condition(pod, "Ready") or {}).get("status") == "True":
        return None
    return "NotReady", f"MPS control daemon {name_of(pod)} of node {node.name} is not Ready", 0


def no_gpus(
    node: PoolNode,
    pods: Iterable[Object],
    events: Iterable[Object],
    *,
    now: float,
    started: float,
    patience_s: float,
    daemon_set: str = "",
    whose: str = "",
    daemons: Iterable[Object] = (),
) -> Verdict:
    """The verdict on a Ready node without allocatable GPUs.

    :param pods: all pods of the device plugin's namespace.
    :param events: events of that namespace.
    :param started: epoch seconds of the first look, used if it is not known since when the node has been Ready.
    :param patience_s: seconds from Ready (or the plugin's start) after which the plugin counts as broken.
    :param daemon_set: see :func:`plugin_pods`.
    :param whose: of a plugin that is not ours, whose it is and where its config is.
    :param daemons: all pods among which the MPS control daemon's may be.
    """
    verdict = _no_gpus(node, pods, events, now=now, started=started, patience_s=patience_s, daemon_set=daemon_set)
    if verdict.reason in _SILENT and (trouble := mps_daemon_trouble(node, daemons)) is not None:
        verdict = _mps_daemon(node, verdict, trouble, now=now, started=started)
    if not whose:
        return verdict
    return Verdict(verdict.phase, verdict.reason, f"{verdict.message}; {whose}", verdict.permanent, verdict.data)


def _mps_daemon(
    node: PoolNode, silent: Verdict, trouble: tuple[str, str, int], *, now: float, started: float
) -> Verdict:
    """The verdict if the cause is found in the MPS control daemon and not in the plugin's own pod.

    :param silent: the verdict without that explanation.
    """
    reason, words, restarts = trouble
    message = f"node {node.name} has no {GPU_RESOURCE}: {words}; the plugin registers none without it"
    waited = now - (node.ready_since if node.ready_since is not None else started)
    if silent.failed or (reason in STUCK_WAITING and (waited >= STUCK_PATIENCE_S or restarts >= 3)):
        return failed(f"{PLUGIN_CAUSE}{MPS_DAEMON_REASON}", message, node=node.name)
    return progressing(f"{PLUGIN_CAUSE}{MPS_DAEMON_REASON}", message)


def _no_gpus(
    node: PoolNode,
    pods: Iterable[Object],
    events: Iterable[Object],
    *,
    now: float,
    started: float,
    patience_s: float,
    daemon_set: str,
) -> Verdict:
    since = node.ready_since if node.ready_since is not None else started
    pod = serving_pod(node.name, pods, daemon_set)
    if pod is None:
        return _absent(node, _about(events, daemon_set), waited=now - since, patience_s=patience_s)
    name = name_of(pod)
    created = epoch((pod.get("metadata") or {}).get("creationTimestamp"))
    age = now - max(since, created if created is not None else since)
    injected = injected_trouble(pod)
    if injected is not None and injected.blocks:
        message = f"node {node.name} has no {GPU_RESOURCE}: {injected}; repair it, or exempt the namespace"
        waited = age if injected.since is None else min(age, now - injected.since)
        # A container that runs may take as long as the plugin itself: probes are slow at the start.
        if injected.stuck and waited >= (patience_s if injected.runs else STUCK_PATIENCE_S):
            return failed(INJECTED, message, node=node.name)
        return progressing(INJECTED, message)
    stuck = None if injected is not None else _waiting(pod)
    if stuck:
        reason, detail, restarts = stuck
        message = f"node {node.name} has no {GPU_RESOURCE}: device-plugin pod {name} is in {reason}: {detail}".rstrip(
            ": "
        )
        if reason in STUCK_WAITING and (age >= STUCK_PATIENCE_S or restarts >= 3):
            return failed(f"{PLUGIN_CAUSE}{reason}", message, node=node.name)
        return progressing(f"{PLUGIN_CAUSE}{reason}", message)
    serving = condition(pod, "Ready") or {}
    # The plugin serves although an added container is not ready; how long it has been serving is what counts.
    if serving.get("status") != "True" and injected is None:
        return progressing(
            f"{PLUGIN_CAUSE}Starting",
            f"node {node.name} has no {GPU_RESOURCE} yet: device-plugin pod {name} is starting",
        )
    serving_since = epoch(serving.get("lastTransitionTime"))
    waited = now - max(since, serving_since if serving_since is not None else since)
    message = f"node {node.name} has no {GPU_RESOURCE}, although device-plugin pod {name} runs"
    if waited >= patience_s:
        return failed(
            f"{PLUGIN_CAUSE}NotRegistering",
            f"{message} and has been Ready for {waited:.0f} s; read its log (driver missing, wrong config entry?)",
            node=node.name,
        )
    return progressing("ResourceNotRegistered", f"{message}; it takes up to a minute to register")


def _about(events: Iterable[Object], daemon_set: str) -> list[Object]:
    return [e for e in events if not daemon_set or (e.get("involvedObject") or {}).get("name") in (None, daemon_set)]


def _absent(node: PoolNode, events: Iterable[Object], *, waited: float, patience_s: float) -> Verdict:
    # The controller tries as soon as the node exists; an earlier refusal was about other nodes.
    refused = [
        event
        for event in events
        if event.get("reason") == "FailedCreate"
        and (event.get("involvedObject") or {}).get("kind") == "DaemonSet"
        and event_time(event) >= (node.created or 0.0)
    ]
    if refused:
        text = str(max(refused, key=event_time).get("message", ""))
        message = f"node {node.name} has no device-plugin pod, because it cannot be created: {text}"
        if waited >= STUCK_PATIENCE_S:
            return failed(f"{PLUGIN_CAUSE}FailedCreate", message, node=node.name)
        return progressing(f"{PLUGIN_CAUSE}FailedCreate", message)
    message = f"node {node.name} has no device-plugin pod"
    if waited >= patience_s:
        return failed(
            f"{PLUGIN_CAUSE}Absent",
            f"{message} after {waited:.0f} s: its DaemonSet does not want one there; check the node's label "
            f"{LABEL_DEVICE_PLUGIN}={SERVED} (for our plugin) and the DaemonSet's selector, affinity and tolerations",
            node=node.name,
        )
    return progressing(f"{PLUGIN_CAUSE}Absent", f"{message} yet")


def _waiting(pod: Object) -> tuple[str, str, int] | None:
    """Reason, message and restarts of the first container that waits for a cause worth naming."""
    found = first_waiting(pod)
    return None if found is None else (found.reason, found.message, found.restarts)
