"""Gates on releases: each kind of workload in each situation, and the device plugin's proof."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.verdict import Phase, Verdict

NS = "gpu"
NOW = 10_000.0
Object = dict[str, Any]


def at(age: float) -> str:
    """The timestamp of ``age`` seconds ago."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(NOW - age, UTC).isoformat().replace("+00:00", "Z")


def meta(name: str, **fields: Any) -> Object:
    ours = {"meta.helm.sh/release-name": "plugin", "meta.helm.sh/release-namespace": NS}
    return {
        "name": name, "namespace": NS, "uid": f"uid-{name}", "generation": 2, "creationTimestamp": at(600),
        "annotations": ours, **fields,
    }  # fmt: skip


TEMPLATE = {
    "metadata": {"labels": {"app": "plugin"}, "annotations": {"checksum/config": "new"}},
    "spec": {"containers": [{"name": "plugin", "image": "plugin:2"}]},
}


def daemon_set(desired: int = 1, updated: int = 1, available: int = 1, observed: int | None = 2) -> Object:
    status: Object = {
        "desiredNumberScheduled": desired, "updatedNumberScheduled": updated, "numberAvailable": available,
    }  # fmt: skip
    if observed is not None:
        status["observedGeneration"] = observed
    return {"kind": "DaemonSet", "metadata": meta("plugin"), "spec": {"template": TEMPLATE}, "status": status}


def deployment(wanted: int = 2, updated: int = 2, available: int = 2, total: int = 2, **status: Any) -> Object:
    return {
        "kind": "Deployment",
        "metadata": meta("controller"),
        "spec": {"replicas": wanted, "template": TEMPLATE},
        "status": {
            "observedGeneration": 2, "replicas": total, "updatedReplicas": updated, "availableReplicas": available,
            **status,
        },
    }  # fmt: skip


def revision(number: int, digest: str, owner: str = "plugin") -> Object:
    """A ControllerRevision of the DaemonSet."""
    return {
        "kind": "ControllerRevision",
        "revision": number,
        "metadata": {
            "name": f"{owner}-{digest}", "namespace": NS, "labels": {"controller-revision-hash": digest},
            "ownerReferences": [{"kind": "DaemonSet", "name": owner, "uid": f"uid-{owner}", "controller": True}],
        },
    }  # fmt: skip


#: What the controller has kept, unless a test says otherwise.
HISTORY = [revision(1, "old"), revision(2, "new")]


def stateful_set(available: int) -> Object:
    return {
        "kind": "StatefulSet",
        "metadata": meta("db"),
        "spec": {"replicas": 1, "template": TEMPLATE},
        "status": {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available},
    }


def job(condition: str | None) -> Object:
    conditions = [{"type": condition, "status": "True", "reason": "BackoffLimitExceeded"}] if condition else []
    return {"kind": "Job", "metadata": meta("prune"), "spec": {}, "status": {"conditions": conditions}}


def pod(
    owner: str = "plugin",
    *,
    node: str = "node-1",
    ready: bool = True,
    waiting: str = "",
    restarts: int = 0,
    age: float = 600,
    old: bool = False,
    unschedulable: str = "",
    kind: str = "DaemonSet",
) -> Object:
    state = {"waiting": {"reason": waiting, "message": "the kubelet's words"}} if waiting else {"running": {}}
    conditions = [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": at(age)}]
    if unschedulable:
        conditions.append(
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}
        )
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{owner}-x", "namespace": NS, "creationTimestamp": at(age),
            "labels": {"app": "plugin", "controller-revision-hash": "old" if old else "new"},
            "ownerReferences": [{"kind": kind, "name": owner, "uid": f"uid-{owner}"}],
        },
        "spec": {"nodeName": node, "containers": [{"name": "plugin", "image": "plugin:2"}]},
        "status": {
            "phase": "Running", "conditions": conditions,
            "containerStatuses": [{"name": "plugin", "restartCount": restarts, "state": state}],
        },
    }  # fmt: skip


def refused(message: str, age: float = 600, owner: str = "plugin", last: float = 1) -> Object:
    return {
        "kind": "Event", "reason": "FailedCreate", "message": message, "lastTimestamp": at(last),
        "firstTimestamp": at(age), "involvedObject": {"kind": "DaemonSet", "uid": f"uid-{owner}"},
    }  # fmt: skip


def node(gpus: int | None = 4, *, pool: str = "shared", ready: bool = True, name: str = "node-1") -> Object:
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {"karpenter.sh/nodepool": pool}},
        "spec": {},
        "status": {
            "allocatable": {} if gpus is None else {"nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": at(600)}],
        },
    }


def quarantined(item: Object) -> Object:
    item["metadata"]["annotations"] = {"gpu-fleet.io/quarantined": "{}"}
    return item


KEYS = {
    "DaemonSet": "daemonsets", "Deployment": "deployments", "StatefulSet": "statefulsets", "Job": "jobs", "Pod": "pods",
    "Event": "events", "ReplicaSet": "replicasets", "ControllerRevision": "controllerrevisions",
}  # fmt: skip


def judge(gate: str, *objects: Object, **args: Any) -> Verdict:
    known = gate_named(gate)
    found: dict[str, Any] = {"release": "plugin", "namespace": NS, "now": NOW, "started": NOW - 5, **args}
    snapshot: dict[str, list[Object]] = {query.key: [] for query in known.queries(found)}
    kept = [] if any(item["kind"] == "ControllerRevision" for item in objects) else HISTORY
    for item in [*objects, *(kept if f"{KEYS['ControllerRevision']}/{NS}" in snapshot else [])]:
        key = "nodes" if item["kind"] == "Node" else f"{KEYS[item['kind']]}/{NS}"
        snapshot[key].append(item)
    return known.judge(snapshot, found)


QUOTA = 'pods "x" is forbidden: exceeded quota: q'
RUNTIME_CLASS = 'Error creating: pods "x" is forbidden: pod rejected: RuntimeClass "nvidia" not found'

SITUATIONS: dict[str, tuple[list[Object], Phase, str]] = {
    "nothing": ([], Phase.PROGRESSING, "NoWorkloads"),
    "another release's workload": (
        [{**daemon_set(), "metadata": {**meta("plugin"), "annotations": {}}}], Phase.PROGRESSING, "NoWorkloads",
    ),
    "rolled out": ([daemon_set(), deployment(), stateful_set(1), job("Complete")], Phase.READY, "RolledOut"),
    "no status at all": ([daemon_set(observed=None)], Phase.PROGRESSING, "NotObserved"),
    "an older generation's status": ([daemon_set(observed=1)], Phase.PROGRESSING, "StatusOutdated"),
    "no node wants it": ([daemon_set(0, 0, 0)], Phase.PROGRESSING, "NoNodeMatches"),
    "old pods still count as available": ([daemon_set(2, 1, 2)], Phase.PROGRESSING, "RollingOut"),
    "one kind is late": ([daemon_set(), stateful_set(0)], Phase.PROGRESSING, "RollingOut"),
    "old replicas not gone": ([deployment(total=3)], Phase.PROGRESSING, "RollingOut"),
    "scaled to zero": ([deployment(0, 0, 0, 0)], Phase.PROGRESSING, "ScaledToZero"),
    "image pull just failed": (
        [daemon_set(1, 1, 0), pod(waiting="ErrImagePull", ready=False)], Phase.PROGRESSING, "ErrImagePull",
    ),
    "image pull fails for long": (
        [daemon_set(1, 1, 0), pod(waiting="ImagePullBackOff", ready=False)], Phase.FAILED, "ImagePullBackOff",
    ),
    "image pull backs off on a fresh pod": (
        [daemon_set(1, 1, 0), pod(waiting="ImagePullBackOff", ready=False, age=5)], Phase.PROGRESSING,
        "ImagePullBackOff",
    ),
    "crashes again and again": (
        [daemon_set(1, 1, 0), pod(waiting="CrashLoopBackOff", ready=False, age=5, restarts=3)], Phase.FAILED,
        "CrashLoopBackOff",
    ),
    "an old revision's pod is stuck, which the new one replaces": (
        [daemon_set(1, 0, 0), pod(waiting="ImagePullBackOff", ready=False, old=True)], Phase.PROGRESSING, "RollingOut",
    ),
    "no place for the pod": (
        [daemon_set(1, 1, 0), pod(ready=False, unschedulable="0/2 nodes are available: 2 Insufficient cpu.")],
        Phase.PROGRESSING, "Unschedulable",
    ),
    "RuntimeClass missing": (
        [daemon_set(2, 0, 0), refused(RUNTIME_CLASS)], Phase.FAILED, "RuntimeClassMissing",
    ),
    "RuntimeClass missing a moment ago": (
        [daemon_set(2, 0, 0), refused(RUNTIME_CLASS, age=2)], Phase.PROGRESSING, "FailedCreate",
    ),
    "RuntimeClass missing, then not: every pod is there": (
        [daemon_set(1, 1, 0), pod(ready=False, age=300), refused(RUNTIME_CLASS, last=200)], Phase.PROGRESSING,
        "RollingOut",
    ),
    "RuntimeClass missing, then not: the first pod is there": (
        [daemon_set(2, 1, 0), pod(ready=False, age=100), refused(RUNTIME_CLASS, last=200)], Phase.PROGRESSING,
        "RollingOut",
    ),
    "RuntimeClass gone after the first pod": (
        [daemon_set(2, 1, 1), pod(age=300), refused(RUNTIME_CLASS, last=200)], Phase.FAILED, "RuntimeClassMissing",
    ),
    "RuntimeClass gone before an update: old pods do not count": (
        [daemon_set(1, 0, 1), pod(old=True, age=100), refused(RUNTIME_CLASS, last=200)], Phase.FAILED,
        "RuntimeClassMissing",
    ),
    "quota": ([daemon_set(2, 0, 0), refused(QUOTA)], Phase.FAILED, "QuotaExceeded"),
    "somebody else's refusal": (
        [daemon_set(2, 0, 0), refused(QUOTA, owner="other")], Phase.PROGRESSING, "RollingOut",
    ),
    "the Deployment's own deadline": (
        [deployment(available=0, conditions=[
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "m"}])],
        Phase.FAILED, "ProgressDeadlineExceeded",
    ),
    "a Job failed": ([job("Failed")], Phase.FAILED, "BackoffLimitExceeded"),
    "a Job runs": ([job(None)], Phase.PROGRESSING, "JobRunning"),
    "one failed outweighs one late": ([stateful_set(0), job("Failed")], Phase.FAILED, "BackoffLimitExceeded"),
    "being deleted": (
        [{**daemon_set(), "metadata": meta("plugin", deletionTimestamp=at(1))}], Phase.PROGRESSING, "Terminating",
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_workloads_in_a_situation(situation: str) -> None:
    objects, phase, reason = SITUATIONS[situation]
    verdict = judge("release_workloads", *objects)
    assert (verdict.phase, verdict.reason) == (phase, reason), verdict.message
    if phase is Phase.FAILED:
        assert verdict.permanent


def test_the_cause_is_named_with_the_objects_own_words() -> None:
    assert (
        'RuntimeClass "nvidia" not found'
        in judge("release_workloads", daemon_set(2, 0, 0), refused(RUNTIME_CLASS)).message
    )
    words = judge("release_workloads", *SITUATIONS["no place for the pod"][0]).message
    assert "2 Insufficient cpu" in words
    assert "plugin-x" in words


def test_a_named_workload_that_does_not_exist_is_waited_for() -> None:
    verdict = judge("release_workloads", daemon_set(), workloads=[f"DaemonSet/{NS}/plugin", f"DaemonSet/{NS}/two"])
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "WorkloadMissing")
    assert "gpu/two" in verdict.message


# --- revisions -------------------------------------------------------------------------------------------------------


def rewritten(item: Object) -> Object:
    """The pod as Kyverno, a mesh and an agent leave it."""
    item["metadata"]["labels"] |= {"security.istio.io/tlsMode": "istio"}
    item["spec"]["containers"] = [
        {"name": "istio-proxy", "image": "proxy"},
        {"name": "plugin", "image": "1.dkr.ecr.us-west-2.amazonaws.com/plugin:2", "env": [{"name": "DD_AGENT_HOST"}]},
    ]
    return item


def test_a_pod_that_a_webhook_rewrote_proves_its_revision() -> None:
    verdict = judge("device_plugin_proven", daemon_set(), rewritten(pod()), node(), pools=POOLS)
    assert (verdict.ready, verdict.reason) == (True, "PluginProven"), verdict.message
    assert not judge("device_plugin_proven", daemon_set(), rewritten(pod(old=True)), node(), pools=POOLS).ready


def test_a_pod_that_looks_like_the_template_and_bears_an_old_revision_proves_nothing() -> None:
    """A change that the old comparison did not look at, such as a volume."""
    same = pod(old=True)
    verdict = judge("device_plugin_proven", daemon_set(), same, node(), pools=POOLS)
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "PodsOutdated")


def test_after_a_rollback_the_old_revision_has_the_highest_number() -> None:
    again = [revision(3, "old"), revision(2, "new"), revision(9, "others", owner="other")]
    assert judge("device_plugin_proven", daemon_set(), pod(old=True), node(), *again, pools=POOLS).ready
    assert not judge("device_plugin_proven", daemon_set(), pod(), node(), *again, pools=POOLS).ready


def test_without_any_revision_nothing_is_proven() -> None:
    foreign = revision(1, "new", owner="other")
    assert not judge("device_plugin_proven", daemon_set(), pod(), node(), foreign, pools=POOLS).ready


def test_a_stateful_sets_new_pod_is_the_cause_and_not_an_old_one() -> None:
    late = {**stateful_set(0), "status": {**stateful_set(0)["status"], "updateRevision": "db-new"}}
    old = pod("db", waiting="CrashLoopBackOff", restarts=9, ready=False, kind="StatefulSet")
    new = pod("db", waiting="ErrImagePull", ready=False, kind="StatefulSet")
    old["metadata"]["labels"]["controller-revision-hash"] = "db-old"
    new["metadata"]["labels"]["controller-revision-hash"] = "db-new"
    assert judge("release_workloads", late, old, new).reason == "ErrImagePull"
    assert judge("release_workloads", late, old).reason == "CrashLoopBackOff"


# --- Jobs that the cluster deletes ---------------------------------------------------------------------------------

PRUNE = f"Job/{NS}/prune"
WITH_JOB: dict[str, Any] = {"workloads": [f"DaemonSet/{NS}/plugin", PRUNE], "passing": [PRUNE]}


@pytest.mark.parametrize("gate", ["release_workloads", "release_installed"])
def test_a_job_that_the_cluster_deletes_once_it_is_done_may_be_gone(gate: str) -> None:
    verdict = judge(gate, daemon_set(), **WITH_JOB)
    assert (verdict.ready, verdict.data) == (True, None), verdict.message
    missing = judge(gate, daemon_set(), workloads=WITH_JOB["workloads"])
    assert (missing.phase, missing.reason) == (Phase.PROGRESSING, "WorkloadMissing")
    assert not judge(gate, job("Complete"), **WITH_JOB).ready, "the DaemonSet is missing"


@pytest.mark.parametrize(
    ("condition", "phase"), [("Failed", Phase.FAILED), (None, Phase.PROGRESSING), ("Complete", Phase.READY)]
)
def test_such_a_job_counts_while_it_is_there(condition: str | None, phase: Phase) -> None:
    assert judge("release_workloads", daemon_set(), job(condition), **WITH_JOB).phase is phase


def test_where_only_such_jobs_were_nothing_is_proven() -> None:
    verdict = judge("release_workloads", workloads=[PRUNE], passing=[PRUNE])
    assert (verdict.ready, verdict.reason, verdict.data) == (True, "JobGone", {"unproven": True})


def test_such_a_job_is_not_part_of_the_plugins_proof() -> None:
    assert judge("device_plugin_proven", daemon_set(), pod(), node(), pools=POOLS, **WITH_JOB).ready


# --- ways to update ------------------------------------------------------------------------------------------------


def updated_by(item: Object, way: str, **fields: Any) -> Object:
    strategy = {"type": way, **({"rollingUpdate": fields} if fields else {})}
    return {**item, "spec": {**item["spec"], "updateStrategy": strategy}}


def replicas(wanted: int, updated: int, available: int, total: int | None = None) -> Object:
    found = stateful_set(available)
    found["spec"]["replicas"] = wanted
    found["status"] |= {"replicas": wanted if total is None else total, "updatedReplicas": updated}
    return found


@pytest.mark.parametrize("unproven", [True, False])
@pytest.mark.parametrize("old", [daemon_set(2, 1, 2), replicas(2, 0, 2)], ids=["DaemonSet", "StatefulSet"])
def test_pods_that_only_a_person_replaces_are_not_waited_for_and_prove_nothing(old: Object, unproven: bool) -> None:
    verdict = judge("release_workloads", updated_by(old, "OnDelete"), allow_unproven=unproven)
    assert (verdict.ready, verdict.reason, verdict.data) == (True, "PodsNotReplaced", {"unproven": True})
    assert not judge("release_workloads", updated_by(old, "RollingUpdate")).ready


@pytest.mark.parametrize(
    ("item", "ready"),
    [(daemon_set(2, 2, 2), True), (daemon_set(2, 0, 1), False), (replicas(2, 2, 2), True), (replicas(2, 0, 1), False)],
    ids=["DaemonSet", "a DaemonSet's pod is not available", "StatefulSet", "a StatefulSet's pod is not available"],
)
def test_pods_that_only_a_person_replaces_must_all_be_available(item: Object, ready: bool) -> None:
    verdict = judge("release_workloads", updated_by(item, "OnDelete"))
    assert (verdict.ready, verdict.reason) == (ready, "RolledOut" if ready else "RollingOut"), verdict.message


def test_an_old_pod_that_cannot_run_and_that_only_a_person_replaces_is_the_cause() -> None:
    stuck = pod(waiting="ImagePullBackOff", ready=False, old=True)
    verdict = judge("release_workloads", updated_by(daemon_set(1, 0, 0), "OnDelete"), stuck)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "ImagePullBackOff")


@pytest.mark.parametrize(
    ("partition", "item", "phase", "reason"),
    [
        (2, replicas(3, 1, 3), Phase.READY, "RolledOut"),
        (2, replicas(3, 0, 3), Phase.PROGRESSING, "RollingOut"),
        (2, replicas(3, 1, 2), Phase.PROGRESSING, "RollingOut"),
        (2, replicas(3, 3, 3), Phase.READY, "RolledOut"),
        (3, replicas(3, 0, 3), Phase.READY, "PodsNotReplaced"),
        (2, replicas(3, 1, 3, total=4), Phase.PROGRESSING, "RollingOut"),
        (0, replicas(3, 2, 3), Phase.PROGRESSING, "RollingOut"),
    ],
    ids=[
        "the ones above it are new", "none is new", "an old one is not available", "all are new", "nothing is above it",
        "one too many", "no partition",
    ],
)  # fmt: skip
def test_only_ordinals_from_the_partition_on_are_updated(
    partition: int, item: Object, phase: Phase, reason: str
) -> None:
    verdict = judge("release_workloads", updated_by(item, "RollingUpdate", partition=partition))
    assert (verdict.phase, verdict.reason) == (phase, reason), verdict.message
    assert bool((verdict.data or {}).get("unproven")) is (reason == "PodsNotReplaced")


@pytest.mark.parametrize("idle", [daemon_set(0, 0, 0), deployment(0, 0, 0, 0)], ids=["no node", "no replicas"])
def test_what_wants_no_pod_is_ready_only_when_asked_for_and_then_unproven(idle: Object) -> None:
    verdict = judge("release_workloads", idle, stateful_set(1), allow_unproven=True)
    assert (verdict.ready, verdict.data) == (True, {"unproven": True})
    assert "GPU" not in verdict.message
    assert "db" in verdict.message
    late = judge("release_workloads", idle, stateful_set(0), allow_unproven=True)
    assert (late.phase, late.reason) == (Phase.PROGRESSING, "RollingOut")
    proven = judge("release_workloads", daemon_set(), stateful_set(1), allow_unproven=True)
    assert (proven.ready, proven.data) == (True, None)


def test_a_deployments_old_pods_do_not_count_against_its_new_ones() -> None:
    sets = [
        {
            "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": NS, "uid": f"uid-{name}",
                "annotations": {"deployment.kubernetes.io/revision": number},
                "ownerReferences": [{"kind": "Deployment", "name": "controller", "uid": "uid-controller"}],
            },
        }
        for name, number in (("old", "9"), ("new", "10"))
    ]  # fmt: skip
    stuck_old = pod("old", waiting="ImagePullBackOff", ready=False, kind="ReplicaSet")
    late = deployment(available=1)
    assert judge("release_workloads", late, *sets, stuck_old).phase is Phase.PROGRESSING
    stuck_new = pod("new", waiting="ImagePullBackOff", ready=False, kind="ReplicaSet")
    assert judge("release_workloads", late, *sets, stuck_new).failed


@pytest.mark.parametrize(
    ("objects", "phase", "reason"),
    [
        ([], Phase.PROGRESSING, "NoWorkloads"),
        ([daemon_set(observed=None)], Phase.PROGRESSING, "NotObserved"),
        ([daemon_set(observed=1)], Phase.PROGRESSING, "StatusOutdated"),
        ([daemon_set(0, 0, 0)], Phase.READY, "Installed"),
        ([daemon_set(2, 0, 0)], Phase.READY, "Installed"),
        ([daemon_set(2, 0, 0), refused(RUNTIME_CLASS)], Phase.FAILED, "RuntimeClassMissing"),
    ],
    ids=["nothing", "not observed", "outdated", "idle", "rolling out", "refused"],
)
def test_installed_in_a_situation(objects: list[Object], phase: Phase, reason: str) -> None:
    verdict = judge("release_installed", *objects)
    assert (verdict.phase, verdict.reason) == (phase, reason)


POOLS = {"shared": {"physical": 1, "replicas": 4}}
PROOFS: dict[str, tuple[list[Object], Phase, str]] = {
    "nothing": ([], Phase.PROGRESSING, "WorkloadMissing"),
    "not observed": ([daemon_set(observed=None), pod(), node()], Phase.PROGRESSING, "NotObserved"),
    "an older generation's status": ([daemon_set(observed=1), pod(), node()], Phase.PROGRESSING, "StatusOutdated"),
    "no node wants it": ([daemon_set(0, 0, 0)], Phase.PROGRESSING, "NoGPUNodes"),
    "proven": ([daemon_set(), pod(), node()], Phase.READY, "PluginProven"),
    "an old revision's pod advertises": ([daemon_set(), pod(old=True), node()], Phase.PROGRESSING, "PodsOutdated"),
    "not shared": ([daemon_set(), pod(), node(1)], Phase.FAILED, "SharingNotApplied"),
    "not shared yet": ([daemon_set(), pod(age=5), node(1)], Phase.PROGRESSING, "SharingNotApplied"),
    "nothing registered": ([daemon_set(), pod(age=5), node(None)], Phase.PROGRESSING, "ResourceNotRegistered"),
    "starting": ([daemon_set(), pod(ready=False), node()], Phase.PROGRESSING, "PluginStarting"),
    "node not ready": ([daemon_set(), pod(), node(ready=False)], Phase.PROGRESSING, "NodeNotReady"),
    "somebody else's node": ([daemon_set(), pod(), node(pool="cpu")], Phase.PROGRESSING, "NodeNotOurs"),
    "unpullable": (
        [daemon_set(), pod(waiting="ImagePullBackOff", ready=False), node()], Phase.FAILED, "ImagePullBackOff",
    ),
    "one works, another cannot": (
        [daemon_set(2, 2, 1), pod(), pod(node="node-2", waiting="ImagePullBackOff", ready=False), node()],
        Phase.FAILED, "ImagePullBackOff",
    ),
    "RuntimeClass missing": ([daemon_set(), refused(RUNTIME_CLASS), node()], Phase.FAILED, "RuntimeClassMissing"),
    "broken on a quarantined node only": (
        [
            daemon_set(2, 2, 2), pod(), node(), pod(node="node-2"), quarantined(node(1, name="node-2")),
            pod(node="node-2", waiting="CrashLoopBackOff", restarts=9, ready=False),
        ],
        Phase.READY, "PluginProven",
    ),
    "all nodes quarantined": ([daemon_set(), pod(), quarantined(node(1))], Phase.PROGRESSING, "NodeQuarantined"),
}  # fmt: skip


@pytest.mark.parametrize("situation", PROOFS)
def test_the_plugins_proof_in_a_situation(situation: str) -> None:
    objects, phase, reason = PROOFS[situation]
    verdict = judge("device_plugin_proven", *objects, pools=POOLS)
    assert (verdict.phase, verdict.reason) == (phase, reason), verdict.message


def carrying(entry: str, item: Object, **labels: str) -> Object:
    item["metadata"]["labels"] |= {"nvidia.com/device-plugin.config": entry, **labels}
    return item


def test_a_node_that_carries_an_older_entry_has_to_offer_what_that_one_says() -> None:
    """The pool shares by eight now; the node was launched when it shared by four, and serves four."""
    eight = {"shared": {"physical": 1, "replicas": 8, "types": ["g5.xlarge"]}}
    for offered, phase in ((4, Phase.READY), (8, Phase.FAILED), (1, Phase.FAILED)):
        old = carrying("time-slicing-4", node(offered))
        verdict = judge("device_plugin_proven", daemon_set(), pod(), old, pools=eight, every_node=True)
        assert verdict.phase is phase, verdict.message
    assert judge("device_plugin_proven", daemon_set(), pod(), carrying("time-slicing-8", node(8)), pools=eight).ready
    unknown = carrying("theirs", node(8))
    assert judge("device_plugin_proven", daemon_set(), pod(), unknown, pools=eight).ready


def test_a_node_of_instance_types_that_the_pool_no_longer_has_says_nothing() -> None:
    pools = {"shared": {"physical": 1, "replicas": 8, "types": ["g5.xlarge"]}}
    old = carrying("exclusive", node(8), **{"node.kubernetes.io/instance-type": "p4d.24xlarge"})
    verdict = judge("device_plugin_proven", daemon_set(), pod(), old, pools=pools)
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "NodeNotOurs")


def test_after_a_rollback_a_quarantined_node_may_still_be_broken() -> None:
    broken = [pod(node="node-2"), quarantined(node(1, name="node-2"))]
    assert judge(
        "device_plugin_proven", daemon_set(2, 2, 2), pod(), node(), *broken, pools=POOLS, every_node=True
    ).ready


def test_after_a_rollback_every_node_must_be_well() -> None:
    late = pod(node="node-2", ready=False, age=5)
    assert judge("device_plugin_proven", daemon_set(2, 2, 1), pod(), late, node(), pools=POOLS).ready
    verdict = judge("device_plugin_proven", daemon_set(2, 2, 1), pod(), late, node(), pools=POOLS, every_node=True)
    assert verdict.phase is Phase.PROGRESSING
    verdict = judge("device_plugin_proven", daemon_set(2, 1, 2), pod(), node(), pools=POOLS, every_node=True)
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "RollingOut")
    assert judge("device_plugin_proven", daemon_set(), pod(), node(), pools=POOLS, every_node=True).ready


def test_patience_counts_from_the_first_failure_not_from_the_pods_birth() -> None:
    stuck = pod(waiting="ImagePullBackOff", ready=False, age=600)
    stuck["metadata"]["uid"] = "uid-pod"
    event = {"kind": "Event", "reason": "Failed", "firstTimestamp": at(3), "involvedObject": {"uid": "uid-pod"}}
    assert judge("release_workloads", daemon_set(1, 1, 0), stuck, event).phase is Phase.PROGRESSING
    assert judge("release_workloads", daemon_set(1, 1, 0), stuck, {**event, "firstTimestamp": at(300)}).failed


def test_a_companion_of_the_plugin_proves_nothing() -> None:
    companion = daemon_set()
    companion["metadata"] = meta("plugin-gpu-feature-discovery")
    verdict = judge(
        "device_plugin_proven", daemon_set(), companion, pod(old=True), pod("plugin-gpu-feature-discovery"), node(),
        pools=POOLS,
    )  # fmt: skip
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "PodsOutdated")


def test_the_proof_names_its_nodes() -> None:
    verdict = judge("device_plugin_proven", daemon_set(), pod(), node(), pools=POOLS)
    assert verdict.data == {"nodes": ["node-1"]}
    assert "1 physical × 4" in verdict.message


def test_workloads_in_two_namespaces_are_both_looked_at() -> None:
    args = {"namespace": "a", "workloads": ["Deployment/a/x", "DaemonSet/b/y"]}
    keys = {query.key for query in gate_named("release_workloads").queries(args)}
    assert {"deployments/a", "daemonsets/b", "pods/a", "pods/b", "events/b"} <= keys
