"""Gate ``pool_capacity``: as many nodes of a pool as wanted are there, each with physical × replicas GPUs.

Arguments: ``pool``, ``wanted`` (nodes), ``physical`` (GPUs per node, from EC2), ``replicas`` (1: exclusive),
``template`` (what a node is launched with today, :class:`PoolTemplate` as JSON; without it any node counts),
``plugin_namespace``, ``plugin_daemon_set`` (its name, if it is ours), ``plugin_patience_s`` (from Ready, or the
plugin's start, to GPUs), ``mismatch_patience_s`` (how long a wrong number may last), ``join_patience_s`` (from the
launch of an instance to its node; ``None``: until Karpenter gives it up), ``ours`` (see
:class:`gpu_fleet.core.device_plugin.detect.Ours`), ``plugins_of_others`` (``namespace/name`` of those that were there
at the start: their pods are looked at, too), ``rung`` (of a pool with a ladder, see :mod:`.rung`) and ``built_in`` (the
nodes' AMI has a device plugin of its own).

'Ready' of a NodeClaim is not enough: it stays True when a node's GPUs vanish and while the node is being deleted, and
Karpenter is content with any number of GPUs. So nodes are judged one by one, and only then are NodeClaims and pods
asked why nodes are missing. A broken node fails the pool only while there are fewer good ones than wanted; beyond those
the verdict names it, and it is not among the nodes that later tasks use. A node whose hardware is broken does not fail
the pool either while enough others are on their way.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from gpu_fleet.core.capacity.launch import EVENT_AGE_S, claim_verdict, shortage_verdict, shortages
from gpu_fleet.core.device_plugin.gpu_count import HARDWARE_REASONS
from gpu_fleet.core.gates.capacity.node import clock_of, node_verdict, served_by
from gpu_fleet.core.gates.capacity.rung import rung_given_up
from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, EVENT, NODE, NODE_CLAIM, POD
from gpu_fleet.core.kubernetes.names import (
    COMPONENT_PLACEHOLDER,
    DEVICE_PLUGIN_NAMESPACE,
    GPU_RESOURCE,
    LABEL_COMPONENT,
    LABEL_NODE_POOL,
    LABEL_POOL,
    SYSTEM_NAMESPACE,
)
from gpu_fleet.core.kubernetes.objects import (
    Object,
    PoolClaim,
    PoolNode,
    deleting,
    event_time,
    finished,
    newest,
    node_of,
    pool_claims,
    pool_nodes,
)
from gpu_fleet.core.nodes.pool_template import PoolTemplate, of_template, older_nodes, short
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.verdict import Phase, Verdict, failed, progressing, ready

#: How long nodes may be missing with nothing on its way before the demand counts as lost (a spot node took its
#: placeholder with it); Karpenter answers a pending pod within 10 s.
LOST_PATIENCE_S = 30.0

#: How long a launched instance may take to join before it is asked why; GPU instances take one to three minutes. The
#: waiting task then looks at what EKS says of the node role, and continues to wait if that is not the cause.
JOIN_PATIENCE_S = 300.0

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
        # They are few, and a second device plugin may be installed at any time, in any namespace.
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
    served = served_by(snapshot, args)
    verdicts = {node.name: node_verdict(node, snapshot, args, expected, served.get(node.name, [])) for node in nodes}
    broken = [verdict for verdict in verdicts.values() if verdict.failed]
    faulty = [name for name, verdict in verdicts.items() if verdict.failed and verdict.reason in HARDWARE_REASONS]
    good = [node for node in nodes if verdicts[node.name].ready]
    if wanted > 0 and len(good) >= wanted:
        surplus = f"; beyond the {wanted} wanted: {broken[0].message}" if broken else ""
        return ready(
            "CapacityReady",
            f"{len(good)} node(s) of pool {pool} have {expected} allocatable {GPU_RESOURCE} each, as promised"
            f"{surplus}{old}",
            **_findings(good, claims, args),
        )
    others = [verdict for name, verdict in verdicts.items() if verdict.failed and name not in faulty]
    if others:
        return others[0]
    usable = [node for node in nodes if node.name not in faulty]
    if broken and not _enough_to_come(wanted, usable, {node.name for node in present}, claims, snapshot):
        return broken[0]
    why = _missing(pool, wanted, usable, {node.name for node in present}, claims, snapshot, args)
    waiting = next((v for v in verdicts.values() if v.phase is Phase.PROGRESSING), None)
    verdict = why if why is not None and (why.failed or waiting is None) else waiting or why
    if verdict is None:
        verdict = progressing("NodesMissing", "nothing is on its way")
    beside = f"; not counted: {broken[0].message}" if broken else ""
    text = f"{len(good)} of {wanted} node(s) of pool {pool} have {expected} {GPU_RESOURCE}: {verdict.message}"
    text += f"{beside}{old}"
    return Verdict(verdict.phase, verdict.reason, text, verdict.permanent, verdict.data)


def _enough_to_come(
    wanted: int, usable: Sequence[PoolNode], present: Set[str], claims: Sequence[PoolClaim], snapshot: Snapshot
) -> bool:
    """Whether as many nodes as wanted may still come without those whose hardware is broken."""
    here = [node for node in usable if not node.cordoned]
    arriving = [claim for claim in claims if claim.node not in present]
    return len(here) + max(len(arriving), len(_pending(snapshot))) >= wanted


def _pending(snapshot: Snapshot) -> list[Object]:
    """The placeholders that still ask for a node."""
    return [
        pod for pod in snapshot.get("placeholders", []) if not node_of(pod) and not finished(pod) and not deleting(pod)
    ]


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
    now, started = clock_of(args)
    here = {node.name for node in nodes if not node.cordoned}
    if len(here) >= wanted:
        return None
    arriving = [claim for claim in claims if claim.node not in present]
    patience = args.get("join_patience_s", JOIN_PATIENCE_S)
    pending = _pending(snapshot)
    if given_up := rung_given_up(pool, wanted - len(here), arriving, pending, snapshot, args):
        return given_up
    for claim in arriving:
        verdict = claim_verdict(claim, now, patience)
        if verdict.failed:
            return verdict
    short = shortages(pool, snapshot.get("claim_events", []), now)
    launched = [claim for claim in arriving if not (claim.waiting and claim.waiting[0] == "Launched")]
    if short and not launched and (pending or arriving):
        return shortage_verdict(pool, short, now, started)
    if arriving:
        return claim_verdict(arriving[0], now, patience)
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


POOL_CAPACITY = Gate("pool_capacity", queries, judge)
