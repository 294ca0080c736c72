"""Gates on Helm releases: are a release's own workloads up, and does the device plugin do what it promises.

Arguments of all: ``release``, ``namespace``; ``workloads``: ``Kind/namespace/name`` of every workload of the manifest
(without it: what carries Helm's annotations of the release); ``passing``: those of them that the cluster deletes once
they are done, so that they may be gone; ``crds``: names of its CustomResourceDefinitions;
``patience_s``: seconds that a cause of failure must have lasted; ``allow_unproven``: be content with a workload that
wants no pod (no node matches a DaemonSet, or it is scaled to 0); the verdict's data then say ``unproven``. They say so
too where nothing of the new revision has run because only a person replaces pods (``OnDelete``), or because all there
was were Jobs that are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.capacity_objects import PoolNode, condition, epoch, finished, labels_of, name_of, node_of
from gpu_fleet.core.device_plugins import Ours, plugins_of_others
from gpu_fleet.core.gates import Args, Gate, KubeQuery, Query, Snapshot, register
from gpu_fleet.core.injected import INJECTED
from gpu_fleet.core.kinds import (
    CONTROLLER_REVISION,
    DAEMON_SET,
    DEPLOYMENT,
    EVENT,
    JOB,
    NODE,
    POD,
    REPLICA_SET,
    STATEFUL_SET,
    Kind,
)
from gpu_fleet.core.names import GPU_RESOURCE, LABEL_INSTANCE_TYPE, LABEL_NODE_POOL, LABEL_PLUGIN_CONFIG
from gpu_fleet.core.plugin_entries import entry_replicas
from gpu_fleet.core.readiness.conditions import is_deleting, label_of, outdated
from gpu_fleet.core.readiness.karpenter import CRDS_ESTABLISHED
from gpu_fleet.core.readiness.workloads import (
    PATIENCE_S,
    UNPROVEN,
    Object,
    Scene,
    is_current,
    judge_workload,
    owned_by,
    pod_trouble,
    pods_of,
    refusal,
    why,
)
from gpu_fleet.core.releases.objects import belongs_to
from gpu_fleet.core.second_plugin import SECOND_PLUGIN, plugins_on, sentence
from gpu_fleet.core.verdict import Phase, Verdict, combine, failed, progressing, ready

_KINDS: dict[str, tuple[str, Kind]] = {
    "DaemonSet": ("daemonsets", DAEMON_SET),
    "Deployment": ("deployments", DEPLOYMENT),
    "StatefulSet": ("statefulsets", STATEFUL_SET),
    "Job": ("jobs", JOB),
}
#: Kinds whose controllers keep ControllerRevisions, which tell the pods of the newest template from older ones.
_WITH_REVISIONS = frozenset({"DaemonSet", "StatefulSet"})
#: Seconds for which a node may advertise another number than promised: the kubelet publishes a changed device count
#: within 10 s, and while the plugin re-registers the count is 0.
MISMATCH_PATIENCE_S = 45.0
JOB_GONE = "JobGone"
NOT_OURS = "NodeNotOurs"
NO_GPU_NODES = "NoGPUNodes"
PLUGIN_PROVEN = "PluginProven"
#: A plugin pod on a node that failed a validation and is out of service.
QUARANTINED = "NodeQuarantined"
#: What others have done to the node or the pod: waiting proves nothing then, and no release is rolled back for it.
NOT_THE_PLUGINS = frozenset({SECOND_PLUGIN, INJECTED})
#: Verdicts about a node that say nothing about the plugin's revision.
_NO_WITNESS = (NOT_OURS, QUARANTINED, SECOND_PLUGIN, INJECTED)
#: Other DaemonSets of the plugin's chart and its subcharts; they run on the same nodes and prove nothing.
_COMPANIONS = ("mps-control-daemon", "feature-discovery")


def _wanted(args: Args) -> list[tuple[str, str, str]]:
    """(kind, namespace, name) of each workload that was named."""
    return [(kind, namespace, name) for kind, namespace, name in (w.split("/") for w in args.get("workloads") or ())]


def _queries(args: Args) -> tuple[Query, ...]:
    """One query per kind that occurs and namespace; a release may put workloads into several."""
    home = str(args.get("namespace") or "default")
    named = _wanted(args)
    kinds = {kind for kind, _, _ in named} or set(_KINDS)
    namespaces = sorted({namespace for _, namespace, _ in named} | {home})
    queries: list[Query] = []
    for namespace in namespaces:
        for kind in sorted(kinds & _KINDS.keys()):
            key, rest = _KINDS[kind]
            queries.append(KubeQuery(f"{key}/{namespace}", rest, namespace))
        queries.append(KubeQuery(f"pods/{namespace}", POD, namespace))
        if kinds & _WITH_REVISIONS:
            queries.append(KubeQuery(f"controllerrevisions/{namespace}", CONTROLLER_REVISION, namespace))
        queries.append(KubeQuery(f"replicasets/{namespace}", REPLICA_SET, namespace, watch=False))
        queries.append(KubeQuery(f"events/{namespace}", EVENT, namespace, watch=False))
    if args.get("crds"):
        queries += CRDS_ESTABLISHED.queries(args)
    return tuple(queries)


def _all(snapshot: Snapshot, key: str) -> list[dict[str, Any]]:
    return [item for name, items in snapshot.items() if name.split("/")[0] == key for item in items]


def _scene(snapshot: Snapshot, args: Args, *, allow_unproven: bool) -> Scene:
    now = float(args.get("now") or 0.0)
    return Scene(
        pods=_all(snapshot, "pods"),
        replica_sets=_all(snapshot, "replicasets"),
        events=_all(snapshot, "events"),
        now=now,
        started=float(args.get("started") or now),
        patience_s=float(args.get("patience_s") or PATIENCE_S),
        allow_unproven=allow_unproven,
        revisions=_all(snapshot, "controllerrevisions"),
    )


def _workloads(snapshot: Snapshot, args: Args) -> tuple[list[dict[str, Any]], list[str]]:
    """The release's workloads that exist, and the names of those that should and do not.

    A Job that the cluster deletes once it is done is not missed: without this a release would be broken as soon as it
    is, and rolled back. While it is there it counts as any other.
    """
    release, home = str(args.get("release") or ""), str(args.get("namespace") or "default")
    present = [item for key, _ in _KINDS.values() for item in _all(snapshot, key)]
    named = _wanted(args)
    if not named:
        return [item for item in present if belongs_to(item, release, home)], []
    by_id = {(str(i["kind"]), str(i["metadata"].get("namespace")), str(i["metadata"]["name"])): i for i in present}
    found = [by_id[identity] for identity in named if identity in by_id]
    gone = set(args.get("passing") or ())
    missed = [identity for identity in named if identity not in by_id and "/".join(identity) not in gone]
    return found, ["{} {}/{}".format(*identity) for identity in missed]


def _gone(args: Args) -> Verdict:
    jobs = ", ".join(str(item) for item in args.get("passing") or ())
    message = f"{jobs}: done and deleted by the cluster, which says not how they ended"
    return ready(JOB_GONE, message, unproven=True)


def _nothing(args: Args) -> Verdict:
    return progressing("NoWorkloads", f"release {args.get('namespace')}/{args.get('release')} has no workloads (yet)")


def judge_workloads(snapshot: Snapshot, args: Args) -> Verdict:
    """Every workload is up, and every CustomResourceDefinition is established."""
    scene = _scene(snapshot, args, allow_unproven=bool(args.get("allow_unproven")))
    found, missing = _workloads(snapshot, args)
    if args.get("crds") and not _wanted(args):
        found = []  # workloads were looked for and the manifest has none
    verdicts = [judge_workload(item, scene) for item in found]
    verdicts += [progressing("WorkloadMissing", f"{name} does not exist (yet)") for name in missing]
    if args.get("crds"):
        verdicts.append(CRDS_ESTABLISHED.judge(snapshot, args))
    if not verdicts and _wanted(args):
        return _gone(args)
    verdict = combine(verdicts, nothing=_nothing(args))
    idle = [item for item in verdicts if item.reason in UNPROVEN]
    return ready(idle[0].reason, verdict.message, unproven=True) if verdict.ready and idle else verdict


def judge_installed(snapshot: Snapshot, args: Args) -> Verdict:
    """Every workload has been seen by its controller, and none is refused or broken; pods need not be ready."""
    scene = _scene(snapshot, args, allow_unproven=True)
    found, missing = _workloads(snapshot, args)
    verdicts = [_installed(item, scene) for item in found]
    verdicts += [progressing("WorkloadMissing", f"{name} does not exist (yet)") for name in missing]
    if not verdicts and _wanted(args):
        return _gone(args)
    return combine(verdicts, nothing=_nothing(args))


def _installed(workload: Object, scene: Scene) -> Verdict:
    name = label_of(workload)
    if is_deleting(workload):
        return progressing("Terminating", f"{name} is being deleted")
    if workload.get("kind") != "Job" and "observedGeneration" not in (workload.get("status") or {}):
        return progressing("NotObserved", f"{name}: no controller has looked at it yet")
    if old := outdated(workload):
        return old
    cause = why(workload, pods_of(workload, scene), scene)
    if cause is not None and cause.failed:
        return cause
    return ready("Installed", f"{name} is installed")


# --- the device plugin -----------------------------------------------------------------------------------------------


def _plugin_queries(args: Args) -> tuple[Query, ...]:
    return (
        *_queries(args),
        KubeQuery("nodes", NODE, label_selector=LABEL_NODE_POOL),
        # Of others' plugins only what they want is looked at: their pods may be in any namespace.
        KubeQuery("every_daemon_set", DAEMON_SET, watch=False),
    )


def judge_plugin(snapshot: Snapshot, args: Args) -> Verdict:
    """At least one node runs *this* revision's plugin pod, Ready, and has the GPUs that its pool was promised.

    Further arguments: ``pools``: pool -> ``{"physical": GPUs per node according to EC2, "replicas": n, "types":
    [instance types]}``; a node with another config entry than its pool's by now has to offer what that one says;
    ``every_node``: ask it of every node that runs the plugin, not of one (after a rollback nothing may stay broken);
    ``ours``: see :class:`gpu_fleet.core.device_plugins.Ours`.

    A node that a second device plugin fights over neither proves nor disproves anything, nor does one whose pod is not
    Ready for a container that a webhook has added; no release is rolled back because of either.
    """
    scene = _scene(snapshot, args, allow_unproven=bool(args.get("allow_unproven")))
    found, missing = _workloads(snapshot, args)
    sets = [item for item in found if item.get("kind") == "DaemonSet" and not _is_companion(item)]
    if missing or not sets:
        return progressing("WorkloadMissing", f"{', '.join(missing) or 'the DaemonSet'} does not exist (yet)")
    for item in sets:
        if "observedGeneration" not in (item.get("status") or {}):
            return progressing("NotObserved", f"{label_of(item)}: no controller has looked at it yet")
        if old := outdated(item):
            return old
    refused = [verdict for item in sets if (verdict := refusal(item, scene)) is not None]
    wanting = [item for item in sets if int((item.get("status") or {}).get("desiredNumberScheduled") or 0)]
    if not wanting:
        message = f"{label_of(sets[0])} wants no pod: no node with GPUs is there, so nothing can be proven"
        return (ready if scene.allow_unproven else progressing)(NO_GPU_NODES, message)
    nodes = {name_of(node): PoolNode.of(node) for node in snapshot.get("nodes", [])}
    labels = {name_of(node): labels_of(node) for node in snapshot.get("nodes", [])}
    fought = _fought_over(snapshot, args)
    verdicts = [
        _plugin_pod(
            pod, nodes.get(node_of(pod)), labels.get(node_of(pod), {}), args, scene, fought.get(node_of(pod), "")
        )
        for item in wanting
        for pod in owned_by(scene.pods, str(item["metadata"].get("uid", "")))
        if is_current(pod, item, scene) and not is_deleting(pod) and not finished(pod)
    ]
    verdicts += refused
    if args.get("every_node"):
        second = next((verdict for verdict in verdicts if verdict.reason in NOT_THE_PLUGINS), None)
        verdicts = [verdict for verdict in verdicts if verdict.reason not in _NO_WITNESS]
        rollouts = [rollout for item in wanting if not (rollout := judge_workload(item, scene)).ready]
        verdicts += [rollout for rollout in rollouts if rollout.reason not in NOT_THE_PLUGINS]
        if second is not None and not verdicts:
            return ready(second.reason, second.message, unproven=True)
        return combine(verdicts, nothing=progressing("PodsOutdated", f"{label_of(wanting[0])}: no pod runs yet"))
    for phase in (Phase.FAILED, Phase.READY, Phase.PROGRESSING):
        chosen = [verdict for verdict in verdicts if verdict.phase is phase]
        if chosen and phase is Phase.READY:
            names = [str((verdict.data or {}).get("node")) for verdict in chosen]
            return ready(PLUGIN_PROVEN, "; ".join(v.message for v in chosen), nodes=sorted(names))
        if chosen and (second := _undecided(chosen, scene)) is not None:
            return second
        if chosen:
            return chosen[0]
    return progressing("PodsOutdated", f"{label_of(wanting[0])}: no pod of this revision runs yet")


def _fought_over(snapshot: Snapshot, args: Args) -> dict[str, str]:
    """Node -> what is to be said about the second device plugin on it."""
    found = args.get("ours")
    ours = Ours.from_json(found) if found is not None else Ours(str(args.get("namespace") or ""))
    plugins = plugins_of_others(snapshot.get("every_daemon_set", []), ours)
    others = {name_of(node): plugins_on(node, plugins, ()) for node in snapshot.get("nodes", []) if plugins}
    return {name: sentence(name, each, ours=True) for name, each in others.items() if each}


def _undecided(progress: list[Verdict], scene: Scene) -> Verdict | None:
    """The verdict if nothing but what others have done keeps a proof from coming: waiting brings none."""
    others = [verdict for verdict in progress if verdict.reason not in (NOT_OURS, QUARANTINED)]
    second = [verdict for verdict in others if verdict.reason in NOT_THE_PLUGINS]
    if progress[0].phase is not Phase.PROGRESSING or not second or len(second) < len(others):
        return None
    if scene.allow_unproven:
        return ready(second[0].reason, second[0].message, unproven=True)
    return failed(second[0].reason, second[0].message)


def _is_companion(workload: Object) -> bool:
    return any(part in str((workload.get("metadata") or {}).get("name")) for part in _COMPANIONS)


def _plugin_pod(
    pod: Object, node: PoolNode | None, labels: Mapping[str, str], args: Args, scene: Scene, fought_over: str
) -> Verdict:
    name = label_of(pod)
    if node is not None and node.quarantined:
        # It is known to be broken: what the plugin shows there says nothing about the plugin.
        return progressing(QUARANTINED, f"{name} runs on node {node.name}, which is quarantined")
    trouble = pod_trouble(pod, scene)
    if trouble is not None and trouble.reason == INJECTED:
        # While it may still get ready by itself, it is waited for as any pod that starts.
        return progressing(INJECTED if trouble.failed else "PluginStarting", trouble.message)
    if trouble is not None:
        return trouble
    if fought_over:
        return progressing(SECOND_PLUGIN, fought_over)
    serving = condition(pod, "Ready") or {}
    if serving.get("status") != "True":
        return progressing("PluginStarting", f"{name} is not Ready yet")
    promise = _promise(args, labels)
    if node is None or promise is None or node.leaving:
        return progressing(NOT_OURS, f"{name} runs on {node_of(pod)}, which belongs to no pool of this cluster")
    if not node.ready:
        return progressing("NodeNotReady", f"node {node.name} is not Ready: {node.not_ready}")
    physical, replicas = promise
    if node.gpus == physical * replicas:
        message = f"node {node.name} runs {name} and has {node.gpus} {GPU_RESOURCE} ({physical} physical × {replicas})"
        return ready(PLUGIN_PROVEN, message, node=node.name)
    message = (
        f"node {node.name} runs {name}, but has {node.gpus or 0} allocatable {GPU_RESOURCE} instead of "
        f"{physical * replicas} ({physical} physical × {replicas})"
    )
    since = epoch(serving.get("lastTransitionTime")) or scene.started
    if scene.now - since >= max(MISMATCH_PATIENCE_S, scene.patience_s):
        return failed("AllocatableMismatch", message)
    return progressing("AllocatableMismatch", message)


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


RELEASE_WORKLOADS = register(Gate("release_workloads", _queries, judge_workloads))
RELEASE_INSTALLED = register(Gate("release_installed", _queries, judge_installed))
DEVICE_PLUGIN_PROVEN = register(Gate("device_plugin_proven", _plugin_queries, judge_plugin))
