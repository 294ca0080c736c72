"""Gate ``device_plugin_proven``: on some node a revision of the device plugin advertises what the pool's spec promises.

Arguments: those of the gates on releases, and

- ``pools``: pool -> ``{"physical": GPUs per node according to EC2, "replicas": n, "types": [instance types]}``; a node
  that carries another config entry than its pool must advertise what that entry says
- ``every_node``: require it of every node that runs the plugin, not of one (after a rollback nothing may stay broken)
- ``ours``: see :class:`gpu_fleet.core.device_plugin.detect.Ours`

Nodes are witnesses. Some prove nothing about the plugin: nodes with a second plugin, nodes whose pod is not Ready
because of a container that a webhook has added, nodes that are quarantined or not ours, nodes with broken hardware (by
the rule of :mod:`gpu_fleet.core.device_plugin.gpu_count`), and nodes that have been NotReady for long. They neither
prove nor disprove anything, and no release is rolled back because of them. If two nodes of the same pool, config entry
and instance type contradict each other, the one that works counts: the release gave both the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpu_fleet.core.device_plugin.causes import (
    MPS_DAEMON_REASON,
    PLUGIN_CAUSE,
    container_started,
    initialized_at,
    mps_daemon_trouble,
)
from gpu_fleet.core.device_plugin.detect import Ours, plugins_of_others
from gpu_fleet.core.device_plugin.gpu_count import (
    HARDWARE_REASONS,
    REPLACE,
    Cause,
    Count,
    count_of,
    reported_fault,
    vouched_for,
)
from gpu_fleet.core.device_plugin.second import SECOND_PLUGIN, plugins_on, sentence
from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.gates.releases import release_queries, release_workloads, scene_of
from gpu_fleet.core.kubernetes.conditions import outdated
from gpu_fleet.core.kubernetes.injected import INJECTED
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, NODE, NODE_CLAIM
from gpu_fleet.core.kubernetes.names import GPU_RESOURCE, LABEL_INSTANCE_TYPE, LABEL_NODE_POOL, LABEL_PLUGIN_CONFIG
from gpu_fleet.core.kubernetes.objects import (
    PoolNode,
    condition,
    deleting,
    epoch,
    finished,
    is_true,
    labels_of,
    name_of,
    node_of,
    title_of,
)
from gpu_fleet.core.kubernetes.workload_causes import pod_trouble, refusal
from gpu_fleet.core.kubernetes.workload_pods import Object, Scene, is_current, owned_by, pods_of
from gpu_fleet.core.kubernetes.workloads import judge_workload
from gpu_fleet.core.manifests.plugin_entries import entry_replicas
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.verdict import Phase, Verdict, combine, failed, progressing, ready

#: Seconds for which a node may advertise another number than promised: the kubelet publishes a changed device count
#: within 10 s, and while the plugin re-registers the count is 0.
MISMATCH_PATIENCE_S = 45.0
#: Seconds after which a node that is not Ready says nothing about the plugin any more: a reboot is shorter.
NOT_READY_PATIENCE_S = 120.0

NOT_OURS = "NodeNotOurs"
NO_GPU_NODES = "NoGPUNodes"
PLUGIN_PROVEN = "PluginProven"
NODE_NOT_READY = "NodeNotReady"
#: A plugin pod on a node that failed a validation and is out of service.
QUARANTINED = "NodeQuarantined"
#: Reasons for which no node can show whether the plugin works; none of them is the release's fault.
NOT_THE_RELEASE = frozenset({SECOND_PLUGIN, INJECTED, NODE_NOT_READY}) | HARDWARE_REASONS
#: Reasons for which a rollout need not be complete on a node.
_EXCUSES = frozenset({QUARANTINED, INJECTED, NODE_NOT_READY}) | HARDWARE_REASONS
#: Failures of one node that another one of its kind refutes.
_REFUTABLE = frozenset({cause.value for cause in Cause}) | {"CrashLoopBackOff", f"{PLUGIN_CAUSE}NotRegistering"}
#: Other DaemonSets of the plugin's chart and its subcharts; they run on the same nodes and prove nothing.
_COMPANIONS = ("mps-control-daemon", "feature-discovery")


@dataclass(frozen=True)
class Word:
    """What one node says about the plugin's revision.

    :ivar kind: pool, config entry and instance type: what the release has to treat alike.
    :ivar silent: it says nothing about the revision, for the verdict's reason.
    """

    node: str
    kind: tuple[str, str, str]
    verdict: Verdict
    silent: bool = False


def _queries(args: Args) -> tuple[Query, ...]:
    return (
        *release_queries(args),
        KubeQuery("nodes", NODE, label_selector=LABEL_NODE_POOL),
        # The time at which a node's GPUs were first seen distinguishes a dead GPU from a plugin that restarted and
        # registered none.
        KubeQuery("claims", NODE_CLAIM, label_selector=LABEL_NODE_POOL, watch=False),
        # Of others' plugins only what they want is looked at: their pods may be in any namespace.
        KubeQuery("every_daemon_set", DAEMON_SET, watch=False),
    )


def judge_plugin(snapshot: Snapshot, args: Args) -> Verdict:
    """At least one node runs *this* revision's plugin pod, Ready, and has the GPUs that its pool was promised."""
    scene = scene_of(snapshot, args, allow_unproven=bool(args.get("allow_unproven")))
    found, missing = release_workloads(snapshot, args)
    sets = [item for item in found if item.get("kind") == "DaemonSet" and not _is_companion(item)]
    if missing or not sets:
        return progressing("WorkloadMissing", f"{', '.join(missing) or 'the DaemonSet'} does not exist (yet)")
    for item in sets:
        if "observedGeneration" not in (item.get("status") or {}):
            return progressing("NotObserved", f"{title_of(item)}: no controller has looked at it yet")
        if old := outdated(item):
            return old
    refused = [verdict for item in sets if (verdict := refusal(item, scene)) is not None]
    wanting = [item for item in sets if int((item.get("status") or {}).get("desiredNumberScheduled") or 0)]
    if not wanting:
        message = f"{title_of(sets[0])} wants no pod: no node with GPUs is there, so nothing can be proven"
        return (ready if scene.allow_unproven else progressing)(NO_GPU_NODES, message)
    words = _words(wanting, snapshot, args, scene)
    nothing = progressing("PodsOutdated", f"{title_of(wanting[0])}: no pod of this revision runs yet")
    if args.get("every_node"):
        return _of_every_node(words, refused, wanting, scene, nothing)
    return _of_some_node(words, refused, scene, nothing)


def _of_every_node(
    words: Sequence[Word], refused: Sequence[Verdict], wanting: Sequence[Object], scene: Scene, nothing: Verdict
) -> Verdict:
    silent = [word for word in words if word.silent]
    excused = {word.node for word in silent if word.verdict.reason in _EXCUSES}
    verdicts = [word.verdict for word in words if not word.silent] + list(refused)
    for item in wanting:
        rollout = judge_workload(*_without(excused, item, scene))
        if not rollout.ready:
            verdicts.append(rollout)
    if not verdicts and (why := _undecided(silent)) is not None:
        return ready(why.reason, why.message, unproven=True)
    verdict = combine(verdicts, nothing=nothing)
    return _beside(verdict, silent) if verdict.ready else verdict


def _of_some_node(words: Sequence[Word], refused: Sequence[Verdict], scene: Scene, nothing: Verdict) -> Verdict:
    works = {word.kind for word in words if word.verdict.ready}
    refuted = [word for word in words if word.verdict.failed and _is_refuted(word, works)]
    silent = [word for word in words if word.silent]
    spoken = [word.verdict for word in words if not word.silent and word not in refuted] + list(refused)
    for phase in (Phase.FAILED, Phase.READY, Phase.PROGRESSING):
        chosen = [verdict for verdict in spoken if verdict.phase is phase]
        if chosen and phase is Phase.READY:
            names = [str((verdict.data or {}).get("node")) for verdict in chosen]
            proven = ready(PLUGIN_PROVEN, "; ".join(v.message for v in chosen), nodes=sorted(names))
            return _beside(proven, [*refuted, *silent])
        if chosen:
            return chosen[0]
    if (why := _undecided(silent)) is not None:
        if scene.allow_unproven:
            return ready(why.reason, why.message, unproven=True)
        # A node may become Ready again; of the rest waiting brings no proof.
        return why if why.reason == NODE_NOT_READY else failed(why.reason, why.message)
    return silent[0].verdict if silent else nothing


def _is_refuted(word: Word, works: Iterable[tuple[str, str, str]]) -> bool:
    return word.verdict.reason in _REFUTABLE and word.kind in works


def _undecided(silent: Iterable[Word]) -> Verdict | None:
    """Why no node can show whether the plugin works; ``None`` if only because the nodes are quarantined or not ours."""
    return next((word.verdict for word in silent if word.verdict.reason in NOT_THE_RELEASE), None)


def _beside(verdict: Verdict, words: Sequence[Word]) -> Verdict:
    """The verdict with the nodes named that it does not rest on, although something is wrong with them."""
    wrong = [word.verdict.message for word in words if word.verdict.reason != NOT_OURS]
    return replace(verdict, message=f"{verdict.message}; not counted: {'; '.join(wrong)}") if wrong else verdict


def _without(nodes: set[str], workload: Object, scene: Scene) -> tuple[Object, Scene]:
    """A DaemonSet and its scene as if it had no pods on these nodes."""
    there = [pod for pod in pods_of(workload, scene) if node_of(pod) in nodes]
    if not there:
        return workload, scene
    status = dict(workload.get("status") or {})
    away = {
        "desiredNumberScheduled": len({node_of(pod) for pod in there}),
        "updatedNumberScheduled": sum(is_current(pod, workload, scene) for pod in there),
        "numberAvailable": sum(is_true(pod, "Ready") for pod in there),
    }
    status |= {field: max(0, int(status.get(field) or 0) - number) for field, number in away.items()}
    names = {name_of(pod) for pod in there}
    left = [pod for pod in scene.pods if name_of(pod) not in names or node_of(pod) not in nodes]
    return {**workload, "status": status}, replace(scene, pods=left, allow_unproven=True)


# --- witnesses -------------------------------------------------------------------------------------------------------


def _words(wanting: Iterable[Object], snapshot: Snapshot, args: Args, scene: Scene) -> list[Word]:
    """What each node with a pod of the present revision says."""
    objects = {name_of(node): node for node in snapshot.get("nodes", [])}
    fought = _fought_over(snapshot, args)
    words = []
    for item in wanting:
        for pod in owned_by(scene.pods, str(item["metadata"].get("uid", ""))):
            if not is_current(pod, item, scene) or deleting(pod) or finished(pod):
                continue
            found = objects.get(node_of(pod))
            node, labels = (PoolNode.of(found), labels_of(found)) if found is not None else (None, {})
            kind = (labels.get(LABEL_NODE_POOL, ""), node.entry if node else "", labels.get(LABEL_INSTANCE_TYPE, ""))
            word = _silent(pod, node, labels, args, scene, fought.get(node_of(pod), ""))
            spoken = word if word is not None else _spoken(pod, node, labels, snapshot, args, scene)
            words.append(replace(spoken, node=node_of(pod), kind=kind))
    return words


def _word(verdict: Verdict, *, silent: bool = False) -> Word:
    return Word("", ("", "", ""), verdict, silent)


def _silent(
    pod: Object, node: PoolNode | None, labels: Mapping[str, str], args: Args, scene: Scene, fought_over: str
) -> Word | None:
    """Why a node says nothing about the plugin, as far as its pod's troubles do not matter for that."""
    name = title_of(pod)
    if node is not None and node.quarantined:
        # It is known to be broken: what the plugin shows there says nothing about the plugin.
        return _word(progressing(QUARANTINED, f"{name} runs on node {node.name}, which is quarantined"), silent=True)
    if node is not None and (fault := reported_fault(node.name, node.hardware)) is not None:
        return _word(progressing(fault.reason, f"{fault.message}; {REPLACE}"), silent=True)
    if node is not None and not node.ready:
        since = node.not_ready_since if node.not_ready_since is not None else scene.started
        message = f"node {node.name} is not Ready: {node.not_ready}"
        return _word(progressing(NODE_NOT_READY, message), silent=scene.now - since >= NOT_READY_PATIENCE_S)
    trouble = pod_trouble(pod, scene)
    if trouble is not None and trouble.reason == INJECTED:
        # While it may still become ready by itself, it is waited for like any pod that starts.
        reason = INJECTED if trouble.failed else "PluginStarting"
        return _word(progressing(reason, trouble.message), silent=trouble.failed)
    if trouble is not None:
        return _word(trouble)
    if fought_over:
        return _word(progressing(SECOND_PLUGIN, fought_over), silent=True)
    if node is None or node.leaving or _promise(args, labels) is None:
        message = f"{name} runs on {node_of(pod)}, which belongs to no pool of this cluster"
        return _word(progressing(NOT_OURS, message), silent=True)
    return None


def _spoken(
    pod: Object, node: PoolNode | None, labels: Mapping[str, str], snapshot: Snapshot, args: Args, scene: Scene
) -> Word:
    name, serving, promise = title_of(pod), condition(pod, "Ready") or {}, _promise(args, labels)
    if serving.get("status") != "True" or node is None or promise is None:
        return _word(progressing("PluginStarting", f"{name} is not Ready yet"))
    physical, replicas = promise
    found = count_of(
        node,
        physical=physical,
        replicas=replicas,
        vouched=vouched_for(container_started(pod), initialized_at(node.name, snapshot.get("claims", [])), scene.now),
    )
    if found.right:
        message = f"node {node.name} runs {name} and has {node.gpus} {GPU_RESOURCE} ({physical} physical × {replicas})"
        return _word(ready(PLUGIN_PROVEN, message, node=node.name))
    since = epoch(serving.get("lastTransitionTime")) or scene.started
    patient = scene.now - since < max(MISMATCH_PATIENCE_S, scene.patience_s)
    message = (
        f"node {node.name} runs {name}, but has {node.gpus or 0} allocatable {GPU_RESOURCE} instead of "
        f"{physical * replicas} ({physical} physical × {replicas})"
    )
    return _wrong_number(node, found, message, scene, patient=patient)


def _wrong_number(node: PoolNode, found: Count, message: str, scene: Scene, *, patient: bool) -> Word:
    if found.cause is Cause.NOT_REGISTERED:
        trouble = mps_daemon_trouble(node, scene.pods)
        reason = f"{PLUGIN_CAUSE}{MPS_DAEMON_REASON if trouble is not None else 'NotRegistering'}"
        words = f"{message}: {trouble[1] if trouble is not None else 'its plugin has registered none'}"
        return _word(progressing("ResourceNotRegistered", words) if patient else failed(reason, words))
    words, reason = f"{message}: {found.message}", found.cause.value
    if found.hardware:
        return _word(progressing(reason, f"{words}; {REPLACE}"), silent=not patient)
    return _word(progressing(reason, words) if patient else failed(reason, words))


def _fought_over(snapshot: Snapshot, args: Args) -> dict[str, str]:
    """Node -> what is to be said about the second device plugin on it."""
    found = args.get("ours")
    ours = Ours.from_json(found) if found is not None else Ours(str(args.get("namespace") or ""))
    plugins = plugins_of_others(snapshot.get("every_daemon_set", []), ours)
    others = {name_of(node): plugins_on(node, plugins, ()) for node in snapshot.get("nodes", []) if plugins}
    return {name: sentence(name, each, ours=True) for name, each in others.items() if each}


def _is_companion(workload: Object) -> bool:
    return any(part in str((workload.get("metadata") or {}).get("name")) for part in _COMPANIONS)


def _promise(args: Args, labels: Mapping[str, str]) -> tuple[int, int] | None:
    """Physical GPUs and replicas of a node: those of the config entry that it carries, which a node that was launched
    before the pool's sharing changed keeps. ``None`` where no pool of the cluster says anything about it.
    """
    pools: Mapping[str, Mapping[str, Any]] = args.get("pools") or {}
    pool = pools.get(labels.get(LABEL_NODE_POOL, ""))
    if pool is None:
        return None
    types, instance = pool.get("types"), labels.get(LABEL_INSTANCE_TYPE)
    if types and instance and instance not in types:
        return None  # launched before the pool's instance types changed: EC2 was not asked about it
    carried = entry_replicas(labels.get(LABEL_PLUGIN_CONFIG, ""))
    return int(pool["physical"]), carried if carried is not None else int(pool["replicas"])


DEVICE_PLUGIN_PROVEN = Gate("device_plugin_proven", _queries, judge_plugin)
