"""Gates on Helm releases: are a release's own workloads up. For the device plugin's promise see ``plugin_proof``.

Arguments of all: ``release``, ``namespace``; ``workloads``: ``Kind/namespace/name`` of every workload of the manifest
(without it: what carries Helm's annotations of the release); ``passing``: those of them that the cluster deletes once
they are done, so that they may be gone; ``crds``: names of its CustomResourceDefinitions;
``patience_s``: seconds that a cause of failure must have lasted; ``allow_unproven``: be content with a workload that
wants no pod (no node matches a DaemonSet, or it is scaled to 0); the verdict's data then say ``unproven``. They say so
too where nothing of the new revision has run because only a person replaces pods (``OnDelete``), or because all there
was were Jobs that are gone.
"""

from __future__ import annotations

from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.gates.objects import CRDS_ESTABLISHED
from gpu_fleet.core.kubernetes.conditions import outdated
from gpu_fleet.core.kubernetes.kinds import (
    CONTROLLER_REVISION,
    DAEMON_SET,
    DEPLOYMENT,
    EVENT,
    JOB,
    POD,
    REPLICA_SET,
    STATEFUL_SET,
    Kind,
)
from gpu_fleet.core.kubernetes.objects import deleting, title_of
from gpu_fleet.core.kubernetes.workload_causes import why
from gpu_fleet.core.kubernetes.workload_pods import PATIENCE_S, Object, Scene, pods_of
from gpu_fleet.core.kubernetes.workloads import UNPROVEN, judge_workload
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.releases.objects import belongs_to
from gpu_fleet.core.verdict import Verdict, combine, progressing, ready

_KINDS: dict[str, tuple[str, Kind]] = {
    "DaemonSet": ("daemonsets", DAEMON_SET),
    "Deployment": ("deployments", DEPLOYMENT),
    "StatefulSet": ("statefulsets", STATEFUL_SET),
    "Job": ("jobs", JOB),
}
#: Kinds whose controllers keep ControllerRevisions, which distinguish the pods of the newest template from older ones.
_WITH_REVISIONS = frozenset({"DaemonSet", "StatefulSet"})
JOB_GONE = "JobGone"


def _wanted(args: Args) -> list[tuple[str, str, str]]:
    """(kind, namespace, name) of each workload that was named."""
    return [(kind, namespace, name) for kind, namespace, name in (w.split("/") for w in args.get("workloads") or ())]


def release_queries(args: Args) -> tuple[Query, ...]:
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


def scene_of(snapshot: Snapshot, args: Args, *, allow_unproven: bool) -> Scene:
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


def release_workloads(snapshot: Snapshot, args: Args) -> tuple[list[dict[str, Any]], list[str]]:
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
    scene = scene_of(snapshot, args, allow_unproven=bool(args.get("allow_unproven")))
    found, missing = release_workloads(snapshot, args)
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
    scene = scene_of(snapshot, args, allow_unproven=True)
    found, missing = release_workloads(snapshot, args)
    verdicts = [_installed(item, scene) for item in found]
    verdicts += [progressing("WorkloadMissing", f"{name} does not exist (yet)") for name in missing]
    if not verdicts and _wanted(args):
        return _gone(args)
    return combine(verdicts, nothing=_nothing(args))


def _installed(workload: Object, scene: Scene) -> Verdict:
    name = title_of(workload)
    if deleting(workload):
        return progressing("Terminating", f"{name} is being deleted")
    if workload.get("kind") != "Job" and "observedGeneration" not in (workload.get("status") or {}):
        return progressing("NotObserved", f"{name}: no controller has looked at it yet")
    if old := outdated(workload):
        return old
    cause = why(workload, pods_of(workload, scene), scene)
    if cause is not None and cause.failed:
        return cause
    return ready("Installed", f"{name} is installed")


RELEASE_WORKLOADS = Gate("release_workloads", release_queries, judge_workloads)
RELEASE_INSTALLED = Gate("release_installed", release_queries, judge_installed)
