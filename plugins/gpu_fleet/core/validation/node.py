"""What a node must show before anything is run on it: an ordered list of rules, the deepest cause first.

Each rule rests on those before it, so one defect has one reason: without its label a node gets no device plugin, and
without the plugin no GPU; only the label is named then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.device_plugin.causes import MPS_DAEMON, container_started, initialized_at, plugin_pods
from gpu_fleet.core.device_plugin.detect import DaemonSetPlugin
from gpu_fleet.core.device_plugin.gpu_count import count, reported_fault, vouched_for
from gpu_fleet.core.device_plugin.second import SECOND_PLUGIN, OnNode, plugins_on, rivals, sentence
from gpu_fleet.core.kubernetes.injected import INJECTED, Injected, injected_trouble
from gpu_fleet.core.kubernetes.names import GPU_RESOURCE, LABEL_DEVICE_PLUGIN, RUNTIME_CLASS_NAME, SERVED
from gpu_fleet.core.kubernetes.objects import (
    HARDWARE_CONDITION,
    Object,
    PoolNode,
    condition,
    deleting,
    labels_of,
    name_of,
    node_of,
    quantity,
)
from gpu_fleet.core.validation.report import Check, failed, not_reached, passed, skipped

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool


@dataclass(frozen=True)
class DaemonPod:
    """A DaemonSet's pod on the node.

    :ivar trouble: why it is not Ready, empty if it is.
    :ivar started: epoch seconds at which its newest container started.
    :ivar injected: if it is not Ready only because of a container that a webhook has added: that one.
    """

    name: str
    trouble: str
    started: float | None
    injected: Injected | None = None


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
        from gpu_fleet.core.manifests.build import pool_labels

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
    :param daemon_set: the plugin's, see :func:`gpu_fleet.core.device_plugin.causes.plugin_pods`.
    :param plugins: DaemonSets of others with a device plugin; :param pods_of_others: all pods of their namespaces.
    :param ours: whether the package's own plugin is to serve the node; else the first of the others does.
    """
    item: Object = node or {}
    view = PoolNode.of(item) if node is not None else None
    spec, status = item.get("spec") or {}, item.get("status") or {}
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
        hardware=None if view is None else view.hardware,
        runtime_class=runtime_class,
        plugin=_newest(served_by),
        mps_daemon=_newest(pod for pod in (here if ours else theirs) if MPS_DAEMON in _owner(pod)),
        initialized_at=initialized_at(name, claims),
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
    trouble = ""
    if (condition(pod, "Ready") or {}).get("status") != "True":
        waiting: dict[str, Any] = next((state["waiting"] for state in states if state.get("waiting")), {})
        words = f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip()
        trouble = words or f"not Ready, phase {status.get('phase', 'unknown')}"
    return DaemonPod(name_of(pod), trouble, container_started(pod), injected_trouble(pod))


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

    @property
    def vouched(self) -> bool:
        """Whether the plugin's pod has been running since the GPUs were first seen."""
        started = self.facts.plugin.started if self.facts.plugin is not None else None
        return vouched_for(started, self.facts.initialized_at, now=None)


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
    fault = reported_fault(e.facts.name, e.facts.hardware)
    if fault is None:
        status = e.facts.hardware[0]
        return passed("hardware", "HardwareReady", f"node condition {HARDWARE_CONDITION} is {status}")
    figures = {"xid": fault.xid} if fault.xid is not None else {"condition": fault.condition} if fault.condition else {}
    return failed("hardware", fault.reason, fault.message, **figures)


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
    if daemon.injected is not None:
        return failed(
            "mpsDaemon", INJECTED, f"node {e.facts.name}: {daemon.injected}", container=daemon.injected.container
        )
    if daemon.trouble:
        message = f"MPS control daemon {daemon.name} of node {e.facts.name} does not serve: {daemon.trouble}"
        return failed("mpsDaemon", "MpsDaemonAbsent", message)
    return passed("mpsDaemon", "MpsDaemonReady", f"pod {daemon.name} is Ready")


def plugin(e: Looked) -> Check:
    """The device plugin's pod on the node is Ready and has registered GPUs.

    The kubelet keeps the devices of a plugin that has gone as unhealthy for five minutes (pkg/kubelet/cm/devicemanager,
    endpointStopGracePeriod), so 'all unhealthy' alone does not tell a dead GPU from a plugin that came back and never
    registered. What tells is whether the plugin has been running since the GPUs were first seen
    (:func:`gpu_fleet.core.device_plugin.gpu_count.vouched_for`).
    """
    pod, capacity = e.facts.plugin, e.facts.capacity or 0
    if pod is None:
        who = "it has no device-plugin pod"
    elif pod.trouble:
        who = f"its device-plugin pod {pod.name} is in trouble: {pod.trouble}"
    else:
        who = f"although its device-plugin pod {pod.name} is Ready"
    figures = {"allocatable": e.gpus, "capacity": capacity, "pod": pod.name if pod else None}
    added = pod.injected if pod is not None else None
    if added is not None and (e.gpus or added.blocks):
        offers = f"node {e.facts.name} offers {e.gpus} {GPU_RESOURCE}" if e.gpus else f"node {e.facts.name} offers none"
        message = f"{offers}; the device plugin's own containers are not to blame, but {added}"
        return failed("plugin", INJECTED, message, **figures, container=added.container)
    sound = pod is not None and not pod.trouble
    unmanaged = pod is None and not e.promise.plugin
    if not e.gpus:
        if not capacity or not (e.vouched if sound else unmanaged):
            message = f"node {e.facts.name} offers no {GPU_RESOURCE}: {who}{e.whose}"
            return failed("plugin", "DevicePluginNotRegistered", message, **figures)
    elif not sound and not unmanaged:
        message = f"node {e.facts.name} still offers {e.gpus} {GPU_RESOURCE}, but {who}{e.whose}"
        return failed("plugin", "DevicePluginNotReady", message, **figures)
    if unmanaged:
        return skipped("plugin", "NotOurs", "the device plugin belongs to others, or is part of the AMI")
    return passed("plugin", "PluginReady", f"device-plugin pod {pod.name if pod else ''} is Ready", **figures)


def allocatable(e: Looked) -> Check:
    """Allocatable is physical × replicas, the physical count being EC2's; if not,
    :mod:`gpu_fleet.core.device_plugin.gpu_count` says what that means.
    """
    capacity = e.facts.capacity or 0
    found = count(
        e.facts.name,
        allocatable=e.gpus,
        capacity=capacity,
        physical=e.physical,
        replicas=e.replicas,
        vouched=True,  # the rule before has seen to it
    )
    figures = {
        "expected": e.slots,
        "actual": e.gpus,
        "capacity": capacity,
        "physical": e.physical,
        "replicas": e.replicas,
    }
    if found.right:
        return passed("allocatable", found.cause.value, found.message, **figures)
    message = found.message if found.hardware else f"{found.message}{e.whose}"
    return failed("allocatable", found.cause.value, message, **figures)


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
