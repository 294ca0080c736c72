"""What a node must show before anything is run on it: an ordered list of rules, the deepest cause first.

Each rule rests on those before it, so one defect has one reason: without its label a node gets no device plugin, and
without the plugin no GPU; only the label is named then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity_objects import (
    Object,
    PoolNode,
    condition,
    deleting,
    epoch,
    labels_of,
    name_of,
    node_of,
    quantity,
)
from gpu_fleet.core.capacity_plugin import plugin_pods
from gpu_fleet.core.device_plugins import DaemonSetPlugin
from gpu_fleet.core.names import GPU_RESOURCE, LABEL_DEVICE_PLUGIN, RUNTIME_CLASS_NAME, SERVED
from gpu_fleet.core.second_plugin import SECOND_PLUGIN, OnNode, plugins_on, rivals, sentence
from gpu_fleet.core.validation_report import Check, failed, not_reached, passed, skipped

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool

#: The node condition of the EKS node monitoring agent for GPUs, and its reason for an XID that calls for a repair
#: (aws/eks-node-monitoring-agent docs/node-health-issues.adoc; milder ones are events, ``NvidiaXID<code>Warning``).
HARDWARE_CONDITION = "AcceleratedHardwareReady"
_XID = re.compile(r"NvidiaXID(?P<code>[0-9]+)Error")
#: The agent's reason for a GPU that the driver does not list any more.
_COUNT_MISMATCH = "NvidiaDeviceCountMismatch"
#: Part of the name of the chart's DaemonSet for MPS (k8s-device-plugin templates/daemonset-mps-control-daemon.yml).
_MPS_DAEMON = "mps-control-daemon"


@dataclass(frozen=True)
class DaemonPod:
    """A DaemonSet's pod on the node.

    :ivar trouble: why it is not Ready, empty if it is.
    :ivar started: epoch seconds at which its newest container started.
    """

    name: str
    trouble: str
    started: float | None


@dataclass(frozen=True)
class Promise:
    """What the cluster spec promises of every node of the pool.

    :ivar labels: of the node, :ivar taints: as (key, effect); where others own the NodePool no taints, and of the
        labels only the one that our device plugin needs.
    :ivar plugin: whether the package owns the device plugin; else it is somebody's DaemonSet, or part of the AMI.
    """

    labels: Mapping[str, str]
    taints: Sequence[tuple[str, str]]
    mps: bool
    plugin: bool
    minimum_driver: str | None = None
    minimum_total: float = 0.7
    tolerance: float = 0.25

    @classmethod
    def of(cls, spec: ClusterSpec, pool: NodePool) -> Promise:
        from gpu_fleet.core.manifests import pool_labels

        validation, served = spec.validation, {LABEL_DEVICE_PLUGIN: SERVED}
        return cls(
            labels=pool_labels(pool) if pool.manage else served if spec.device_plugin.manage else {},
            taints=[(taint.key, taint.effect) for taint in pool.taints] if pool.manage else [],
            mps=pool.mps,
            plugin=spec.device_plugin.manage,
            minimum_driver=validation.minimum_driver,
            minimum_total=validation.throughput.minimum_total,
            tolerance=validation.throughput.tolerance,
        )


@dataclass(frozen=True)
class NodeFacts:
    """One node and what belongs to it, at one moment.

    :ivar view: the node; ``None`` if it is gone or leaving.
    :ivar capacity: ``nvidia.com/gpu`` in the capacity, which counts unhealthy devices too; allocatable does not.
    :ivar hardware: status, reason and message of the EKS node monitoring agent's condition; ``None`` without the agent.
    :ivar runtime_class: whether the RuntimeClass exists.
    :ivar initialized_at: epoch seconds at which Karpenter saw the GPUs registered.
    :ivar others: device plugins of others there, the one that came first before the rest.
    """

    name: str
    view: PoolNode | None
    labels: Mapping[str, str]
    taints: frozenset[tuple[str, str]]
    capacity: int | None
    hardware: tuple[str, str, str] | None
    runtime_class: bool
    plugin: DaemonPod | None
    mps_daemon: DaemonPod | None
    initialized_at: float | None = None
    others: tuple[OnNode, ...] = ()


def node_facts(
    name: str,
    node: Object | None,
    *,
    pods: Iterable[Object],
    runtime_class: bool,
    claims: Iterable[Object] = (),
    daemon_set: str = "",
    plugins: Iterable[DaemonSetPlugin] = (),
    pods_of_others: Iterable[Object] = (),
    ours: bool = True,
) -> NodeFacts:
    """The facts about a node.

    :param node: the Node object, ``None`` if there is none.
    :param pods: all pods of the device plugin's namespace; :param claims: NodeClaims, of any node.
    :param daemon_set: the plugin's, see :func:`gpu_fleet.core.capacity_plugin.plugin_pods`.
    :param plugins: DaemonSets of others with a device plugin; :param pods_of_others: all pods of their namespaces.
    :param ours: whether the package's own plugin is to serve the node; else the first of the others does.
    """
    item: Object = node or {}
    view = PoolNode.of(item) if node is not None else None
    spec, status = item.get("spec") or {}, item.get("status") or {}
    hardware = condition(item, HARDWARE_CONDITION)
    here = [pod for pod in pods if node_of(pod) == name and not deleting(pod)]
    theirs = [pod for pod in pods_of_others if node_of(pod) == name and not deleting(pod)]
    others = tuple(plugins_on(item, plugins, theirs)) if node is not None else ()
    served_by = plugin_pods(here, daemon_set) if ours else [each.pod for each in others[:1] if each.pod is not None]
    return NodeFacts(
        name=name,
        view=None if view is None or view.leaving else view,
        labels=labels_of(item),
        taints=frozenset((str(t.get("key", "")), str(t.get("effect", ""))) for t in spec.get("taints") or []),
        capacity=quantity((status.get("capacity") or {}).get(GPU_RESOURCE)),
        hardware=None
        if hardware is None
        else (str(hardware.get("status")), str(hardware.get("reason", "")), str(hardware.get("message", ""))),
        runtime_class=runtime_class,
        plugin=_newest(served_by),
        mps_daemon=_newest(pod for pod in (here if ours else theirs) if _MPS_DAEMON in _owner(pod)),
        initialized_at=_initialized_at(name, claims),
        others=others,
    )


def _owner(pod: Object) -> str:
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    return next((str(owner.get("name", "")) for owner in owners if owner.get("kind") == "DaemonSet"), "")


def _newest(pods: Iterable[Object]) -> DaemonPod | None:
    found = max(pods, key=lambda pod: str((pod.get("metadata") or {}).get("creationTimestamp", "")), default=None)
    return None if found is None else _daemon_pod(found)


def _daemon_pod(pod: Object) -> DaemonPod:
    status = pod.get("status") or {}
    containers: list[dict[str, Any]] = list(status.get("containerStatuses") or [])
    states = [dict(container.get("state") or {}) for container in containers]
    starts = [
        seconds for state in states if (seconds := epoch((state.get("running") or {}).get("startedAt"))) is not None
    ]
    trouble = ""
    if (condition(pod, "Ready") or {}).get("status") != "True":
        waiting: dict[str, Any] = next((state["waiting"] for state in states if state.get("waiting")), {})
        words = f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip()
        trouble = words or f"not Ready, phase {status.get('phase', 'unknown')}"
    return DaemonPod(name_of(pod), trouble, max(starts, default=None))


def _initialized_at(name: str, claims: Iterable[Object]) -> float | None:
    for claim in claims:
        if (claim.get("status") or {}).get("nodeName") == name:
            entry = condition(claim, "Initialized") or {}
            return epoch(entry.get("lastTransitionTime")) if entry.get("status") == "True" else None
    return None


@dataclass(frozen=True)
class Looked:
    """What the rules look at: facts, promise, and the numbers.

    :ivar physical: GPUs according to EC2, :ivar replicas: how often each is promised.
    """

    facts: NodeFacts
    promise: Promise
    physical: int
    replicas: int

    @property
    def slots(self) -> int:
        return self.physical * self.replicas

    @property
    def whose(self) -> str:
        """Where the plugin's config is, if it is not ours; to be put behind a message."""
        if self.promise.plugin or not self.facts.others:
            return ""
        plugin = self.facts.others[0].plugin
        config = (
            f"ConfigMap {plugin.namespace}/{plugin.found.config_map}" if plugin.found.config_map else "no ConfigMap"
        )
        return f"; the plugin there is {plugin}, which others manage, with {config}"

    @property
    def gpus(self) -> int:
        """Allocatable; 0 where the node does not have the resource."""
        return (self.facts.view.gpus if self.facts.view is not None else None) or 0


NodeRule = Callable[[Looked], Check]


def node_present(e: Looked) -> Check:
    """The node is there, is not being removed, and is Ready."""
    node = e.facts.view
    if node is None:
        return failed("node", "NodeVanished", f"node {e.facts.name} is gone or being removed")
    if not node.ready:
        return failed("node", "NodeNotReady", f"node {node.name} is not Ready: {node.not_ready}")
    return passed("node", "NodeReady", f"node {node.name} is Ready")


def runtime_class(e: Looked) -> Check:
    """The RuntimeClass exists; without it the API server refuses every pod that names it."""
    if not e.facts.runtime_class:
        return failed("runtimeClass", "RuntimeClassMissing", f"RuntimeClass {RUNTIME_CLASS_NAME} does not exist")
    return passed("runtimeClass", "RuntimeClassExists", f"RuntimeClass {RUNTIME_CLASS_NAME} exists")


def labels(e: Looked) -> Check:
    """The node has the pool's labels: two of them decide whether and how the device plugin runs there.

    The one by which our plugin finds its nodes may lack where the plugin is there all the same: a release of an earlier
    version of the package selects by another label, and the next rollout adds this one first.
    """
    needless = {LABEL_DEVICE_PLUGIN} if e.facts.plugin is not None or not e.promise.plugin else set()
    wrong = [(k, v) for k, v in e.promise.labels.items() if e.facts.labels.get(k) != v and k not in needless]
    if wrong:
        key, value = wrong[0]
        found = f"is {e.facts.labels[key]!r}" if key in e.facts.labels else "is missing"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        message = f"label {key} of node {e.facts.name} {found}, the pool promises {value!r}{more}"
        return failed("labels", "LabelMissing", message, wrong=dict(wrong))
    if not e.promise.labels:
        return skipped("labels", "NotOurs", "the NodePool belongs to others")
    return passed("labels", "LabelsAsPromised", f"{len(e.promise.labels)} label(s)")


def taints(e: Looked) -> Check:
    """The node has the pool's taints: without them any pod may fill a node that is paid for its GPUs."""
    missing = [f"{key}:{effect}" for key, effect in e.promise.taints if (key, effect) not in e.facts.taints]
    if missing:
        return failed("taints", "TaintMissing", f"node {e.facts.name} lacks the taint {', '.join(missing)}")
    if not e.promise.taints:
        return skipped("taints", "NonePromised", "the pool has no taints, or belongs to others")
    return passed("taints", "TaintsAsPromised", f"{len(e.promise.taints)} taint(s)")


def hardware(e: Looked) -> Check:
    """The EKS node monitoring agent, where it is installed, has found no fault of the GPUs."""
    if e.facts.hardware is None:
        return skipped("hardware", "NotMonitored", f"no agent sets the node condition {HARDWARE_CONDITION}")
    status, reason, message = e.facts.hardware
    if status != "False":
        return passed("hardware", "HardwareReady", f"node condition {HARDWARE_CONDITION} is {status}")
    words = f"node {e.facts.name}: {HARDWARE_CONDITION} is False, {reason}: {message}".rstrip(": ")
    if xid := _XID.fullmatch(reason):
        return failed("hardware", "XidError", words, xid=int(xid["code"]))
    if reason == _COUNT_MISMATCH:
        return failed("hardware", "GpuLost", words)
    return failed("hardware", "HardwareNotReady", words, condition=reason)


def one_plugin(e: Looked) -> Check:
    """No second device plugin is there: with one every number below is right or wrong by chance."""
    others, ours = e.facts.others, e.promise.plugin
    if rivals(others, ours=ours):
        figures = {"others": [each.plugin.ref for each in others], "allocatable": e.gpus}
        return failed("onePlugin", SECOND_PLUGIN, sentence(e.facts.name, others, ours=ours), **figures)
    return passed("onePlugin", "OnePlugin", "no second device plugin runs on the node")


def mps_daemon(e: Looked) -> Check:
    """The MPS control daemon runs: without it the plugin never registers a GPU, and no client gets a limit."""
    if not e.promise.mps:
        return skipped("mpsDaemon", "NotAsked", "the pool does not share by MPS")
    daemon = e.facts.mps_daemon
    if daemon is None:
        if not e.promise.plugin:
            return skipped("mpsDaemon", "NotOurs", "the device plugin belongs to others")
        return failed("mpsDaemon", "MpsDaemonAbsent", f"node {e.facts.name} has no pod of the MPS control daemon")
    if daemon.trouble:
        message = f"MPS control daemon {daemon.name} of node {e.facts.name} does not serve: {daemon.trouble}"
        return failed("mpsDaemon", "MpsDaemonAbsent", message)
    return passed("mpsDaemon", "MpsDaemonReady", f"pod {daemon.name} is Ready")


def plugin(e: Looked) -> Check:
    """The device plugin's pod on the node is Ready and has registered GPUs.

    The kubelet keeps the devices of a plugin that has gone as unhealthy for five minutes (pkg/kubelet/cm/devicemanager,
    endpointStopGracePeriod), so 'all unhealthy' alone does not tell a dead GPU from a plugin that came back and never
    registered. What tells is whether the plugin has been running since the GPUs were first seen.
    """
    pod, capacity = e.facts.plugin, e.facts.capacity or 0
    if pod is None:
        who = "it has no device-plugin pod"
    elif pod.trouble:
        who = f"its device-plugin pod {pod.name} is in trouble: {pod.trouble}"
    else:
        who = f"although its device-plugin pod {pod.name} is Ready"
    figures = {"allocatable": e.gpus, "capacity": capacity, "pod": pod.name if pod else None}
    sound = pod is not None and not pod.trouble
    unmanaged = pod is None and not e.promise.plugin
    if not e.gpus:
        restarted = (
            pod is not None
            and pod.started is not None
            and e.facts.initialized_at is not None
            and pod.started > e.facts.initialized_at
        )
        if not capacity or restarted or not (sound or unmanaged):
            message = f"node {e.facts.name} offers no {GPU_RESOURCE}: {who}{e.whose}"
            return failed("plugin", "DevicePluginNotRegistered", message, **figures)
    elif not sound and not unmanaged:
        message = f"node {e.facts.name} still offers {e.gpus} {GPU_RESOURCE}, but {who}{e.whose}"
        return failed("plugin", "DevicePluginNotReady", message, **figures)
    if unmanaged:
        return skipped("plugin", "NotOurs", "the device plugin belongs to others, or is part of the AMI")
    return passed("plugin", "PluginReady", f"device-plugin pod {pod.name if pod else ''} is Ready", **figures)


def allocatable(e: Looked) -> Check:
    """Allocatable is physical × replicas, the physical count being EC2's.

    A device that the plugin calls unhealthy leaves allocatable and stays in the capacity. Of a plugin that started when
    the GPU was gone already only the arithmetic is left: replicas change the number in steps of the physical count,
    lost GPUs in steps of the replicas.
    """
    actual, capacity, name = e.gpus, e.facts.capacity or 0, e.facts.name
    figures = {
        "expected": e.slots,
        "actual": actual,
        "capacity": capacity,
        "physical": e.physical,
        "replicas": e.replicas,
    }
    if actual == e.slots:
        return passed("allocatable", "AllocatableAsPromised", f"{actual} = {e.physical} × {e.replicas}", **figures)
    if capacity > actual:
        message = (
            f"node {name} has {capacity} {GPU_RESOURCE}, of which only {actual} are healthy: a GPU is lost or faulty"
        )
        return failed("allocatable", "GpuLost", message, **figures)
    if e.replicas > 1 and actual == e.physical:
        message = f"node {name} offers its {e.physical} GPU(s) unshared, not {e.slots} shares: no sharing is configured"
        message += e.whose
        return failed("allocatable", "SharingNotApplied", message, **figures)
    if actual < e.slots and actual % e.replicas == 0 and (e.replicas == 1 or actual % e.physical):
        message = (
            f"node {name} offers {actual} {GPU_RESOURCE}: {actual // e.replicas} of its {e.physical} GPUs are left"
        )
        return failed("allocatable", "GpuLost", message, **figures)
    return failed(
        "allocatable",
        "AllocatableMismatch",
        f"node {name} offers {actual} {GPU_RESOURCE}, not {e.slots} ({e.physical} physical × {e.replicas}){e.whose}",
        **figures,
    )


#: The name of each rule's check, in the order of blame; every rule rests on all before it.
NODE_RULES: tuple[tuple[str, NodeRule], ...] = (
    ("node", node_present),
    ("runtimeClass", runtime_class),
    ("labels", labels),
    ("taints", taints),
    ("hardware", hardware),
    ("onePlugin", one_plugin),
    ("mpsDaemon", mps_daemon),
    ("plugin", plugin),
    ("allocatable", allocatable),
)


def look_at_node(looked: Looked) -> list[Check]:
    """All checks that need no probe; after the first that fails the others are left out, with their names."""
    checks: list[Check] = []
    broken = ""
    for name, rule in NODE_RULES:
        check = not_reached(name, broken) if broken else rule(looked)
        if not broken and not check.holds:
            broken = name
        checks.append(check)
    return checks
