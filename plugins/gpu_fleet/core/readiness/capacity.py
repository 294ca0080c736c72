"""Gate ``pool_capacity``: as many nodes of a pool as wanted are there, each with physical × replicas GPUs.

Arguments: ``pool``, ``wanted`` (nodes), ``physical`` (GPUs per node, from EC2), ``replicas`` (1: exclusive),
``template`` (what a node is launched with today, :class:`PoolTemplate` as JSON; without it any node counts),
``plugin_namespace``, ``plugin_daemon_set`` (its name, if it is ours), ``plugin_patience_s`` (from Ready, or the
plugin's start, to GPUs), ``mismatch_patience_s`` (how long a wrong number may stand), ``ours`` (see
:class:`gpu_fleet.core.device_plugins.Ours`) and ``plugins_of_others`` (``namespace/name`` of those that were there at
the start: their pods are looked at, too).

'Ready' of a NodeClaim is not enough: it stays True when a node's GPUs vanish and while the node is being deleted, and
Karpenter is content with any number of GPUs. So nodes are judged one by one, and only then are NodeClaims and pods
asked why nodes are missing. A broken node fails the pool only while fewer good ones than wanted stand; beyond those the
verdict names it, and it is not among the nodes that later tasks use.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from gpu_fleet.core.capacity import COMPONENT_PLACEHOLDER
from gpu_fleet.core.capacity_launch import EVENT_AGE_S, claim_verdict, shortage_verdict, shortages
from gpu_fleet.core.capacity_objects import (
    Object,
    PoolClaim,
    PoolNode,
    condition,
    deleting,
    epoch,
    event_time,
    finished,
    name_of,
    newest,
    node_of,
    pool_claims,
    pool_nodes,
)
from gpu_fleet.core.capacity_plugin import no_gpus, plugin_pods
from gpu_fleet.core.device_plugins import Ours, plugins_of_others
from gpu_fleet.core.gates import Args, Gate, KubeQuery, Query, Snapshot, register
from gpu_fleet.core.kinds import DAEMON_SET, EVENT, NODE, NODE_CLAIM, POD
from gpu_fleet.core.names import (
    DEVICE_PLUGIN_NAMESPACE,
    GPU_RESOURCE,
    LABEL_COMPONENT,
    LABEL_NODE_POOL,
    LABEL_POOL,
    SYSTEM_NAMESPACE,
)
from gpu_fleet.core.pool_template import PoolTemplate, of_template, older_nodes, short
from gpu_fleet.core.second_plugin import SECOND_PLUGIN, OnNode, plugins_on, rivals, sentence
from gpu_fleet.core.verdict import Phase, Verdict, failed, progressing, ready

PLUGIN_PATIENCE_S = 300.0
#: The kubelet publishes a changed device count within 10 s (its node status update period).
MISMATCH_PATIENCE_S = 45.0
#: How long nodes may be missing with nothing on its way before the demand is taken for lost (a spot node took its
#: placeholder with it); Karpenter answers a pending pod within 10 s.
LOST_PATIENCE_S = 30.0

#: What Karpenter says of a pool at its limits; the second is about ``limits.nodes``
#: (kubernetes-sigs/karpenter v1.14 pkg/controllers/provisioning/scheduling/scheduler.go).
_AT_LIMITS = ("exceed limits for nodepool", "node limits have been exhausted for nodepool")


def queries(args: Args) -> tuple[Query, ...]:
    pool = str(args["pool"])
    of_pool = f"{LABEL_NODE_POOL}={pool}"
    plugin = str(args.get("plugin_namespace") or DEVICE_PLUGIN_NAMESPACE)
    elsewhere = sorted({str(ref).partition("/")[0] for ref in args.get("plugins_of_others") or ()} - {plugin})
    return (
        KubeQuery("claims", NODE_CLAIM, label_selector=of_pool),
        KubeQuery("nodes", NODE, label_selector=of_pool),
        KubeQuery(
            "placeholders",
            POD,
            SYSTEM_NAMESPACE,
            label_selector=f"{LABEL_COMPONENT}={COMPONENT_PLACEHOLDER},{LABEL_POOL}={pool}",
        ),
        KubeQuery("plugin_pods", POD, plugin),
        KubeQuery("plugin_events", EVENT, plugin, watch=False),
        *(KubeQuery(f"plugin_pods/{namespace}", POD, namespace) for namespace in elsewhere),
        *(KubeQuery(f"plugin_events/{namespace}", EVENT, namespace, watch=False) for namespace in elsewhere),
        # Few, and a second device plugin may be installed at any time, in any namespace.
        KubeQuery("daemon_sets", DAEMON_SET, watch=False),
        KubeQuery("pod_events", EVENT, SYSTEM_NAMESPACE, watch=False),
        # Events about objects without a namespace are kept in 'default'.
        KubeQuery("claim_events", EVENT, "default", field_selector="involvedObject.kind=NodeClaim", watch=False),
        KubeQuery(
            "pool_events",
            EVENT,
            "default",
            field_selector=f"involvedObject.kind=NodePool,involvedObject.name={pool}",
            watch=False,
        ),
    )


def judge(snapshot: Snapshot, args: Args) -> Verdict:
    pool, wanted = str(args["pool"]), int(args["wanted"])
    expected = int(args["physical"]) * int(args["replicas"])
    template = PoolTemplate.from_json(args.get("template"))
    drifted = older_nodes(template, pool, snapshot.get("nodes", []), snapshot.get("claims", []))
    old = short(drifted)
    present = pool_nodes(snapshot.get("nodes", []), pool)
    nodes = [node for node in present if node.name not in drifted]
    claims = pool_claims(of_template(snapshot.get("claims", []), template), pool)
    served = _served_by(snapshot, args)
    verdicts = {node.name: _node_verdict(node, snapshot, args, expected, served.get(node.name, [])) for node in nodes}
    broken = [verdict for verdict in verdicts.values() if verdict.failed]
    good = [node for node in nodes if verdicts[node.name].ready]
    if wanted > 0 and len(good) >= wanted:
        surplus = f"; beyond the {wanted} wanted: {broken[0].message}" if broken else ""
        return ready(
            "CapacityReady",
            f"{len(good)} node(s) of pool {pool} have {expected} allocatable {GPU_RESOURCE} each, as promised"
            f"{surplus}{old}",
            **_findings(good, claims, args),
        )
    if broken:
        return broken[0]
    why = _missing(pool, wanted, nodes, {node.name for node in present}, claims, snapshot, args)
    waiting = next((v for v in verdicts.values() if v.phase is Phase.PROGRESSING), None)
    verdict = why if why is not None and (why.failed or waiting is None) else waiting or why
    if verdict is None:
        verdict = progressing("NodesMissing", "nothing is on its way")
    text = f"{len(good)} of {wanted} node(s) of pool {pool} have {expected} {GPU_RESOURCE}: {verdict.message}{old}"
    return Verdict(verdict.phase, verdict.reason, text, verdict.permanent, verdict.data)


def _served_by(snapshot: Snapshot, args: Args) -> dict[str, list[OnNode]]:
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


def _node_verdict(node: PoolNode, snapshot: Snapshot, args: Args, expected: int, others: Sequence[OnNode]) -> Verdict:
    now, started = _clock(args)
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
    managed = _ours(args).namespace is not None
    if rivals(others, ours=managed):
        return failed(SECOND_PLUGIN, sentence(node.name, others, ours=managed), node=node.name)
    pods: Sequence[Object] = snapshot.get("plugin_pods", [])
    events: Sequence[Object] = snapshot.get("plugin_events", [])
    if not managed:
        # Whoever the plugin belongs to: its DaemonSet tells which pods are its.
        pods = [each.pod for each in others[:1] if each.pod is not None]
        events = _everywhere(snapshot, "plugin_events")
    patience = float(args.get("plugin_patience_s") or PLUGIN_PATIENCE_S)
    if not node.gpus:
        return no_gpus(
            node,
            pods,
            events,
            now=now,
            started=started,
            patience_s=patience,
            daemon_set=_daemon_set(args, others),
            whose=_whose(args, others),
        )
    if node.gpus != expected:
        return _mismatch(node, pods, args, expected, others)
    if not node.initialized:
        return progressing("NodeNotInitialized", f"node {node.name} has its GPUs; Karpenter has yet to initialize it")
    return ready("NodeReady", f"node {node.name} has {expected} {GPU_RESOURCE}")


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


def _mismatch(node: PoolNode, pods: Sequence[Object], args: Args, expected: int, others: Sequence[OnNode]) -> Verdict:
    now, started = _clock(args)
    known = [node.ready_since if node.ready_since is not None else started]
    for pod in plugin_pods(pods, _daemon_set(args, others)):
        if node_of(pod) == node.name:
            serving = epoch((condition(pod, "Ready") or {}).get("lastTransitionTime"))
            known.append(serving if serving is not None else started)
    waited = now - max(known)
    physical, replicas = int(args["physical"]), int(args["replicas"])
    whose = _whose(args, others)
    message = (
        f"node {node.name} ({node.instance_type or 'unknown type'}) has {node.gpus} allocatable {GPU_RESOURCE}, "
        f"expected {expected} ({physical} physical × {replicas})"
    )
    if waited >= float(args.get("mismatch_patience_s") or MISMATCH_PATIENCE_S):
        return failed(
            "AllocatableMismatch",
            f"{message}; the device plugin's config on that node is not the pool's: compare the ConfigMap's entry with "
            f"the node label nvidia.com/device-plugin.config{f'; {whose}' if whose else ''}",
            node=node.name,
            expected=expected,
            actual=node.gpus,
        )
    return progressing("AllocatableMismatch", message)


def _missing(
    pool: str,
    wanted: int,
    nodes: Sequence[PoolNode],
    present: Set[str],
    claims: Sequence[PoolClaim],
    snapshot: Snapshot,
    args: Args,
) -> Verdict | None:
    """Why fewer nodes than wanted have joined; ``None`` if enough have.

    :param present: names of all nodes of the pool, also of those that do not count.
    """
    now, started = _clock(args)
    here = {node.name for node in nodes if not node.cordoned}
    if len(here) >= wanted:
        return None
    arriving = [claim for claim in claims if claim.node not in present]
    pending = [
        pod for pod in snapshot.get("placeholders", []) if not node_of(pod) and not finished(pod) and not deleting(pod)
    ]
    for claim in arriving:
        verdict = claim_verdict(claim, now)
        if verdict.failed:
            return verdict
    short = shortages(pool, snapshot.get("claim_events", []), now)
    launched = [claim for claim in arriving if not (claim.waiting and claim.waiting[0] == "Launched")]
    if short and not launched and (pending or arriving):
        return shortage_verdict(pool, short, now, started)
    if arriving:
        return claim_verdict(arriving[0], now)
    if pending:
        return _unschedulable(pool, pending, snapshot, now)
    message = (
        f"{wanted - len(here)} node(s) of pool {pool} are missing, and neither a NodeClaim nor a placeholder is there"
    )
    if now - started >= LOST_PATIENCE_S:
        return failed("CapacityLost", f"{message}: a node was taken away; the next try asks again", permanent=False)
    return progressing("NodesMissing", message)


def _unschedulable(pool: str, pending: Sequence[Object], snapshot: Snapshot, now: float) -> Verdict:
    """What Karpenter says about placeholders that have no NodeClaim."""
    uids = [str((pod.get("metadata") or {}).get("uid", "")) for pod in pending]
    events = [event for event in snapshot.get("pod_events", []) if _from_karpenter(event)]
    event = newest(events, "FailedScheduling", uids)
    if event is None:
        incompatible = newest(snapshot.get("pool_events", []), "NoCompatibleInstanceTypes")
        if incompatible and event_time(incompatible) >= now - EVENT_AGE_S:
            return progressing(
                "NoCompatibleInstanceTypes", f"Karpenter on pool {pool}: {incompatible.get('message', '')}"
            )
        return progressing(
            "WaitingForKarpenter",
            f"{len(pending)} placeholder(s) are pending and Karpenter has not answered; is its controller running?",
        )
    text = _about(pool, str(event.get("message", "")))
    if "did not tolerate taint" in text:
        return failed("TaintNotTolerated", f"Karpenter cannot place the placeholders: {text}")
    if any(limit in text for limit in _AT_LIMITS):
        return progressing("NodePoolLimitReached", f"pool {pool} is at its limits: {text}")
    if "no instance type" in text:
        return progressing("NoInstanceTypeFits", f"Karpenter finds no instance type: {text}")
    return progressing("FailedScheduling", f"Karpenter cannot place the placeholders: {text}")


def _about(pool: str, message: str) -> str:
    """The part of Karpenter's message that is about this pool: it lists every NodePool's objection."""
    for quoted in (f'"{pool}"', f"NodePool={pool})"):
        for part in message.split("; "):
            if quoted in part:
                return part
    return message


def _from_karpenter(event: Object) -> bool:
    component = (event.get("source") or {}).get("component") or event.get("reportingComponent")
    return component == "karpenter"


def _clock(args: Args) -> tuple[float, float]:
    now = float(args.get("now") or 0.0)
    return now, float(args.get("started") or now)


def _findings(nodes: Sequence[PoolNode], claims: Sequence[PoolClaim], args: Args) -> dict[str, Any]:
    """What later tasks need to know, small enough for an XCom."""
    return {
        "nodes": [node.name for node in nodes],
        "nodeClaims": [claim.name for claim in claims],
        "physical": int(args["physical"]),
        "replicas": int(args["replicas"]),
        "allocatable": {node.name: node.gpus for node in nodes},
        "instances": {node.name: node.instance() for node in nodes},
    }


POOL_CAPACITY = register(Gate("pool_capacity", queries, judge))
