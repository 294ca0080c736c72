"""One node before the gate ``pool_capacity``: does it have what its pool promises, and if not, whose fault is it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpu_fleet.core.device_plugin.causes import container_started, initialized_at, no_gpus, plugin_pods, serving_pod
from gpu_fleet.core.device_plugin.detect import Ours, plugins_of_others
from gpu_fleet.core.device_plugin.gpu_count import REPLACE, Cause, Count, count_of, reported_fault, vouched_for
from gpu_fleet.core.device_plugin.second import SECOND_PLUGIN, OnNode, plugins_on, rivals, sentence
from gpu_fleet.core.gates.gate import Args, Snapshot
from gpu_fleet.core.kubernetes.names import DEVICE_PLUGIN_NAMESPACE, GPU_RESOURCE
from gpu_fleet.core.kubernetes.objects import Object, PoolNode, condition, epoch, is_true, name_of, node_of
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

#: The AMI's own device plugin registers no GPU.
BUILT_IN_PLUGIN = "BuiltInPluginNotRegistering"
PLUGIN_PATIENCE_S = 300.0
#: The kubelet publishes a changed device count within 10 s (its node status update period).
MISMATCH_PATIENCE_S = 45.0


def clock_of(args: Args) -> tuple[float, float]:
    now = float(args.get("now") or 0.0)
    return now, float(args.get("started") or now)


def served_by(snapshot: Snapshot, args: Args) -> dict[str, list[OnNode]]:
    """Node -> the device plugins of others on it."""
    plugins = plugins_of_others(snapshot.get("daemon_sets", []), _ours(args))
    if not plugins:
        return {}
    pods = _everywhere(snapshot, "plugin_pods")
    return {name_of(node): plugins_on(node, plugins, pods) for node in snapshot.get("nodes", [])}


def _ours(args: Args) -> Ours:
    found = args.get("ours")
    namespace = str(args.get("plugin_namespace") or DEVICE_PLUGIN_NAMESPACE)
    return Ours(namespace) if found is None else Ours.from_json(found)


def _everywhere(snapshot: Snapshot, key: str) -> list[Object]:
    return [item for name, items in snapshot.items() if name.partition("/")[0] == key for item in items]


def node_verdict(node: PoolNode, snapshot: Snapshot, args: Args, expected: int, others: Sequence[OnNode]) -> Verdict:
    now, started = clock_of(args)
    if node.unregistered:
        return progressing("NodeNotRegistered", f"node {node.name} has not been taken over by Karpenter yet")
    if not node.ready:
        return progressing("NodeNotReady", f"node {node.name} is not Ready: {node.not_ready}")
    if node.quarantined:
        return progressing(
            "NodeQuarantined",
            f"node {node.name} is quarantined since it failed a validation; it is released when it passes again",
        )
    if node.cordoned:
        return progressing("NodeCordoned", f"node {node.name} is cordoned and takes no job; uncordon or delete it")
    if fault := reported_fault(node.name, node.hardware):
        return failed(fault.reason, f"{fault.message}; {REPLACE}", node=node.name)
    if args.get("built_in"):
        return _built_in(node, snapshot, args, others)
    managed = _ours(args).namespace is not None
    if rivals(others, ours=managed):
        return failed(SECOND_PLUGIN, sentence(node.name, others, ours=managed), node=node.name)
    pods: Sequence[Object] = snapshot.get("plugin_pods", [])
    events: Sequence[Object] = snapshot.get("plugin_events", [])
    if not managed:
        # By the plugin's DaemonSet, whether the plugin is ours or another team's.
        pods = [each.pod for each in others[:1] if each.pod is not None]
        events = _everywhere(snapshot, "plugin_events")
    patience = float(args.get("plugin_patience_s") or PLUGIN_PATIENCE_S)
    found = _count(node, pods, snapshot, args, others)
    if found.cause is Cause.NOT_REGISTERED:
        return no_gpus(
            node,
            pods,
            events,
            now=now,
            started=started,
            patience_s=patience,
            daemon_set=_daemon_set(args, others),
            whose=_whose(args, others),
            daemons=pods if managed else _everywhere(snapshot, "plugin_pods"),
        )
    if not found.right:
        return _wrong_number(node, found, pods, args, others)
    return _with_gpus(node, expected)


def _with_gpus(node: PoolNode, expected: int) -> Verdict:
    if not node.usable:
        return progressing("NodeNotInitialized", f"node {node.name} has its GPUs; Karpenter has yet to initialize it")
    return ready("NodeReady", f"node {node.name} has {expected} {GPU_RESOURCE}")


def _built_in(node: PoolNode, snapshot: Snapshot, args: Args, others: Sequence[OnNode]) -> Verdict:
    """The verdict on a node whose AMI has a device plugin: a service of the host, of which no pod and no event tells.

    Nothing here blames our release, so it is never rolled back for it.
    """
    if others:
        return failed(SECOND_PLUGIN, sentence(node.name, others, ours=True), node=node.name)
    now, started = clock_of(args)
    found = _count(node, [], snapshot, args, others)
    waited = now - (node.ready_since if node.ready_since is not None else started)
    if found.cause is Cause.NOT_REGISTERED:
        message = f"node {node.name} has no {GPU_RESOURCE}: the device plugin of its AMI has registered none"
        if waited < float(args.get("plugin_patience_s") or PLUGIN_PATIENCE_S):
            return progressing(Cause.NOT_REGISTERED.value, f"{message}; it takes up to a minute to register")
        return failed(
            BUILT_IN_PLUGIN,
            f"{message} for {waited:.0f} s; read its log on the node (journalctl -u nvidia-k8s-device-plugin), and see "
            "whether the AMI is the NVIDIA variant",
            node=node.name,
        )
    if not found.right:
        return _wrong_number(node, found, [], args, others)
    return _with_gpus(node, int(args["physical"]) * int(args["replicas"]))


def _daemon_set(args: Args, others: Sequence[OnNode]) -> str:
    if _ours(args).namespace is not None:
        return str(args.get("plugin_daemon_set") or "")
    return others[0].plugin.name if others else ""


def _whose(args: Args, others: Sequence[OnNode]) -> str:
    """Of a plugin that is not ours: whose it is and where its config is."""
    if _ours(args).namespace is not None:
        return ""
    if not others:
        return "no DaemonSet of others with a device plugin wants a pod there (devicePlugin.manage: false)"
    plugin = others[0].plugin
    where = f"its config is ConfigMap {plugin.namespace}/{plugin.found.config_map}" if plugin.found.config_map else ""
    return f"the plugin there is {plugin} and belongs to others; {where or 'it has no config file'}"


def _count(node: PoolNode, pods: Sequence[Object], snapshot: Snapshot, args: Args, others: Sequence[OnNode]) -> Count:
    """What the node's numbers say, by the rule that proof and validation follow, too."""
    pod = serving_pod(node.name, pods, _daemon_set(args, others))
    registered = initialized_at(node.name, snapshot.get("claims", []))
    sound = pod is not None and is_true(pod, "Ready")
    started = container_started(pod) if pod is not None and sound else None
    return count_of(
        node,
        physical=int(args["physical"]),
        replicas=int(args["replicas"]),
        vouched=vouched_for(started, registered, clock_of(args)[0]),
    )


def _wrong_number(
    node: PoolNode, found: Count, pods: Sequence[Object], args: Args, others: Sequence[OnNode]
) -> Verdict:
    now, started = clock_of(args)
    known = [node.ready_since if node.ready_since is not None else started]
    for pod in plugin_pods(pods, _daemon_set(args, others)):
        if node_of(pod) == node.name:
            serving = epoch((condition(pod, "Ready") or {}).get("lastTransitionTime"))
            known.append(serving if serving is not None else started)
    waited = now - max(known)
    physical, replicas = int(args["physical"]), int(args["replicas"])
    expected, reason = physical * replicas, found.cause.value
    whose = _whose(args, others)
    message = (
        f"node {node.name} ({node.instance_type or 'unknown type'}) has {node.gpus or 0} allocatable {GPU_RESOURCE}, "
        f"expected {expected} ({physical} physical × {replicas}): {found.message}"
    )
    if waited < float(args.get("mismatch_patience_s") or MISMATCH_PATIENCE_S):
        return progressing(reason, message)
    figures: dict[str, Any] = {
        "node": node.name,
        "expected": expected,
        "actual": node.gpus or 0,
        "capacity": node.capacity,
    }
    if found.hardware:
        return failed(reason, f"{message}; {REPLACE}", **figures)
    if args.get("built_in"):
        return failed(
            reason,
            f"{message}; the device plugin of its AMI is configured by the EC2NodeClass's userData, which follows from "
            "the pool's sharing: a node that was launched before a change keeps what it had",
            **figures,
        )
    return failed(
        reason,
        f"{message}; the device plugin's config on that node is not the pool's: compare the ConfigMap's entry with "
        f"the node label nvidia.com/device-plugin.config{f'; {whose}' if whose else ''}",
        **figures,
    )
