"""What a node must show before anything is run on it: an ordered list of rules, the deepest cause first.

Each rule rests on those before it, so one defect has one reason: without its label a node gets no device plugin, and
without the plugin no GPU; only the label is named then.
"""

from __future__ import annotations

from collections.abc import Callable

from gpu_fleet.core.device_plugin.gpu_count import count, reported_fault
from gpu_fleet.core.device_plugin.second import SECOND_PLUGIN, rivals, sentence
from gpu_fleet.core.kubernetes.injected import INJECTED
from gpu_fleet.core.kubernetes.names import GPU_RESOURCE, LABEL_DEVICE_PLUGIN, RUNTIME_CLASS_NAME
from gpu_fleet.core.kubernetes.objects import HARDWARE_CONDITION
from gpu_fleet.core.validation.facts import Looked
from gpu_fleet.core.validation.report import Check, failed, not_reached, passed, skipped

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

    The label by which our plugin finds its nodes may be missing although the plugin runs there: a release of an earlier
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
        return skipped("labels", "NotOurs", "others manage the NodePool")
    return passed("labels", "LabelsAsPromised", f"{len(e.promise.labels)} label(s)")


def taints(e: Looked) -> Check:
    """The node has the pool's taints: without them any pod may fill a node that is paid for its GPUs."""
    missing = [f"{key}:{effect}" for key, effect in e.promise.taints if (key, effect) not in e.facts.taints]
    if missing:
        return failed("taints", "TaintMissing", f"node {e.facts.name} lacks the taint {', '.join(missing)}")
    if not e.promise.taints:
        return skipped("taints", "NonePromised", "the pool has no taints, or others manage it")
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
    others, ours = e.facts.others, e.promise.no_other
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
            return skipped("mpsDaemon", "NotOurs", "others manage the device plugin")
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

    The kubelet keeps the devices of a plugin that has stopped as unhealthy for five minutes
    (pkg/kubelet/cm/devicemanager, endpointStopGracePeriod), so 'all unhealthy' alone does not distinguish a dead GPU
    from a plugin that restarted and never registered. It is decided by whether the plugin has been running since the
    GPUs were first seen
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
        whose = "it is part of the AMI" if e.promise.built_in else "others manage the device plugin"
        return skipped("plugin", "NotOurs", whose)
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
        vouched=True,  # the rule before has checked it
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
