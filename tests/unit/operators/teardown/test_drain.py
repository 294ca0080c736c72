"""The drain operator on the sandbox's API server; nothing plays the kubelet, so each pod's end is up to the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import (
    ApiUnavailable,
    Conflict,
    DeadlinePassed,
    Forbidden,
    GpuFleetError,
    PermanentError,
    SpecError,
    Throttled,
)
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL, POD, POD_DISRUPTION_BUDGET, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY, ANNOTATION_QUARANTINED
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.nodes.freeze import frozen
from gpu_fleet.core.verdict import Verdict, progressing
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.nodes import take_back_cordons, take_back_own_cordons
from gpu_fleet.operators.teardown import drain as drain_operators
from gpu_fleet.operators.teardown.drain import DrainOperator
from gpu_fleet.operators.teardown.drain_pools import DrainPoolOperator, DrainRemovedPoolsOperator
from gpu_fleet.triggers import waiting
from gpu_fleet.triggers.looking import look, verdict_of_error
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL = "shared-a10g"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("drain")) as running:
        yield running


@pytest.fixture
def node(cluster: SandboxCluster) -> Iterator[str]:
    """A node of the pool, and a clean namespace."""
    kube = cluster.kube
    name = "n1"
    kube.create(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"karpenter.sh/nodepool": POOL}}}
    )
    kube.create(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other", "labels": {"karpenter.sh/nodepool": "cpu"}}}
    )
    yield name
    for kind in (POD, POD_DISRUPTION_BUDGET):
        for item in kube.list(kind):
            end(cluster, item["metadata"]["name"], kind)
    for gone in (name, "other"):
        kube.delete(ObjectRef(NODE, gone))


def pod(
    cluster: SandboxCluster, name: str, node: str = "n1", *, owner: str | None = "ReplicaSet", **metadata: Any
) -> str:
    """A running pod; returns its UID."""
    if owner is not None:
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": owner, "name": "web", "uid": "u-web", "controller": True}
        ]
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}, **metadata},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}]},
    }
    created = cluster.kube.create(manifest)
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    cluster.kube.patch(ObjectRef(POD, name, "default"), {"status": ready}, subresource="status")
    return str(created["metadata"]["uid"])


def end(cluster: SandboxCluster, name: str, kind: Any = POD) -> None:
    """What the kubelet does in the end."""
    cluster.kube.delete(ObjectRef(kind, name, "default"), grace_seconds=0)


def budget(cluster: SandboxCluster, allowed: int, name: str = "web-pdb") -> None:
    """A budget whose controller has seen it."""
    created = cluster.kube.create(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
        }
    )
    status = {
        "observedGeneration": created["metadata"].get("generation", 1),
        "disruptionsAllowed": allowed,
        "currentHealthy": 1,
        "desiredHealthy": 1,
        "expectedPods": 1,
    }
    cluster.kube.patch(ObjectRef(POD_DISRUPTION_BUDGET, name, "default"), {"status": status}, subresource="status")


class Drain:
    """One task: run it, and wake it up after its deferrals."""

    def __init__(self, cluster: SandboxCluster, **spec: Any) -> None:
        self.operator: DrainOperator = DrainPoolOperator(task_id="drain", node_pool=POOL)
        self.context = context(TaskInstance(spec=spec_at(str(cluster.access.path), **spec)))
        self.deferred: TaskDeferred | None = None

    def run(self) -> dict[str, Any] | None:
        """The report, or ``None`` if the task deferred."""
        try:
            if self.deferred is None:
                return self.operator.execute(self.context)  # type: ignore[no-any-return]
            event = {"type": "verdict", "gate": "pods_gone", "verdict": None}
            return self.operator.resume(self.context, event=event, **(self.deferred.kwargs or {}))
        except TaskDeferred as deferred:
            self.deferred = deferred
            return None

    @property
    def waits_for(self) -> dict[str, Any]:
        assert self.deferred is not None
        return self.deferred.trigger.args  # type: ignore[no-any-return]


def outcomes(report: dict[str, Any] | None) -> dict[str, str]:
    assert report is not None
    return {row["pod"]: row["outcome"] for row in report["pods"]}


def test_a_pool_without_nodes_is_drained(cluster: SandboxCluster) -> None:
    report = Drain(cluster).run()
    assert report is not None
    assert (report["nodes"], report["pods"]) == ([], [])


def test_pods_are_evicted_and_confirmed_by_uid(cluster: SandboxCluster, node: str) -> None:
    uid = pod(cluster, "a")
    pod(cluster, "elsewhere", "other")
    drain = Drain(cluster)
    assert drain.run() is None
    assert drain.waits_for["uids"] == [uid]
    assert drain.waits_for["nodes"] == [node]
    assert (cluster.kube.get(ObjectRef(NODE, node)) or {})["spec"]["unschedulable"] is True
    assert "unschedulable" not in (cluster.kube.get(ObjectRef(NODE, "other")) or {}).get("spec", {})
    end(cluster, "a")
    report = drain.run()
    assert outcomes(report) == {"default/a": "Evicted"}
    assert cluster.kube.get(ObjectRef(POD, "elsewhere", "default")) is not None


def test_a_task_that_was_killed_starts_again_where_the_cluster_is(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "a")
    assert Drain(cluster).run() is None
    again = Drain(cluster)
    assert again.run() is None
    end(cluster, "a")
    assert outcomes(again.run()) == {"default/a": "Terminated"}


def test_a_budget_blocks_until_it_allows(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "a")
    budget(cluster, allowed=0)
    drain = Drain(cluster)
    assert drain.run() is None
    assert "default/a" in drain.waits_for["blocked"][0]
    assert "web-pdb" in drain.waits_for["blocked"][0] or "disruption budget" in drain.waits_for["blocked"][0]
    end(cluster, "web-pdb", POD_DISRUPTION_BUDGET)
    assert drain.run() is None
    assert drain.waits_for["blocked"] == []
    end(cluster, "a")
    assert outcomes(drain.run()) == {"default/a": "Evicted"}


def test_while_a_budget_forbids_no_task_is_started_for_it(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The triggerer watches the budget; the tries in between become rare, as each is a task's start."""
    pod(cluster, "a")
    budget(cluster, allowed=0)
    drain, begin, waits = Drain(cluster, drain={"timeout": "10m", "retryEvery": "5s"}), time.time(), []
    for elapsed in (0, 5, 60, 300):
        monkeypatch.setattr(time, "time", lambda now=begin + elapsed: now)
        assert drain.run() is None
        assert drain.deferred is not None
        waits.append(drain.deferred.trigger.deadline - begin - elapsed)
    assert waits == pytest.approx([5, 5, 30, 60])
    verdict = look("pods_gone", drain.waits_for, cluster.access)
    assert verdict.reason == "EvictionBlocked"
    ref = ObjectRef(POD_DISRUPTION_BUDGET, "web-pdb", "default")
    cluster.kube.patch(ref, {"status": {"disruptionsAllowed": 1}}, subresource="status")
    later = {**drain.waits_for, "again_after": 0.0}
    assert look("pods_gone", drain.waits_for, cluster.access).reason == "EvictionBlocked", "not before retryEvery"
    assert look("pods_gone", later, cluster.access).reason == "EvictionPossible"
    assert drain.run() is None
    assert drain.waits_for["blocked"] == []
    end(cluster, "a")
    assert outcomes(drain.run()) == {"default/a": "Evicted"}


@pytest.mark.parametrize(
    "refusal",
    [Conflict("evict Pod default/a: changed"), Throttled("evict Pod default/a: too many requests", retry_after=1.0)],
    ids=["it changed in between", "the API server is busy"],
)
def test_what_no_budget_forbids_is_tried_again_soon(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    pod(cluster, "a")
    drain = Drain(cluster, drain={"timeout": "10m", "retryEvery": "5s"})
    monkeypatch.setattr(KubeClient, "evict", refuse(refusal))
    begin = time.time()
    for elapsed in (0, 300):
        monkeypatch.setattr(time, "time", lambda now=begin + elapsed: now)
        assert drain.run() is None
    assert drain.deferred is not None
    assert drain.deferred.trigger.deadline - begin - 300 == pytest.approx(5)
    assert drain.waits_for["held"] == {}


class Looks:
    """The first look of the gate takes its time, and then says this; those that follow are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float, said: Verdict) -> None:
        self.count, self.slept, self.away = 0, 0.0, 0.0
        real, clock = waiting.look, time.time

        def slow(*args: Any, **options: Any) -> Verdict:
            self.count += 1
            if self.count > 1:
                return real(*args, **options)
            self.away += seconds
            return said

        def sleep(seconds: float) -> None:
            self.slept += seconds

        monkeypatch.setattr(time, "time", lambda: clock() + self.away)
        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setattr(waiting, "look", slow)


def test_a_look_that_outlasts_the_pause_does_not_end_the_drain(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many nodes, or an API server under load: its pause is over, and its time is not."""
    pod(cluster, "a")
    budget(cluster, allowed=0)
    drain = Drain(cluster, drain={"timeout": "10m", "retryEvery": "5s"})
    looks = Looks(monkeypatch, 7.0, progressing("EvictionBlocked", "1 pods remain"))
    assert drain.run() is None
    assert (looks.count, looks.slept) == (2, 0.0)


@pytest.mark.parametrize("resumed", [False, True], ids=["at first", "after a wait"])
@pytest.mark.parametrize(
    ("seconds", "error"),
    [(7.0, ApiUnavailable("list pods: connection refused")), (0.0, Forbidden("list pods: forbidden"))],
    ids=["the API was away for the pause", "a look was forbidden"],
)
def test_a_drain_that_could_not_see_looks_again_after_a_moment(
    cluster: SandboxCluster,
    node: str,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    error: GpuFleetError,
    resumed: bool,
) -> None:
    pod(cluster, "a")
    budget(cluster, allowed=0)
    drain = Drain(cluster, drain={"timeout": "10m", "retryEvery": "5s"})
    if resumed:
        assert drain.run() is None
    looks = Looks(monkeypatch, seconds, verdict_of_error(error))
    assert drain.run() is None
    assert (looks.count, looks.slept) == (2, drain_operators.BLIND_S)


def test_looks_that_outlast_the_drain_end_it_by_its_own_word(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod(cluster, "a")
    budget(cluster, allowed=0)
    drain = Drain(cluster, drain={"timeout": "10m", "retryEvery": "5s"})
    Looks(monkeypatch, 700.0, progressing("EvictionBlocked", "1 pods remain"))
    with pytest.raises(DeadlinePassed, match="default/a on n1: PodDisruptionBudget web-pdb"):
        drain.run()


def refuse(error: Exception) -> Any:
    def evict(*_: Any, **__: Any) -> None:
        raise error

    return evict


def test_two_budgets_block_until_one_is_gone(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "a")
    for name in ("web-pdb", "second"):
        budget(cluster, allowed=1, name=name)
    drain = Drain(cluster)
    assert drain.run() is None
    assert "more than one PodDisruptionBudget" in drain.waits_for["blocked"][0]
    end(cluster, "second", POD_DISRUPTION_BUDGET)
    assert drain.run() is None
    assert drain.waits_for["blocked"] == []
    end(cluster, "a")
    assert outcomes(drain.run()) == {"default/a": "Evicted"}


@pytest.mark.parametrize("policy", ["fail", "delete"])
def test_two_budgets_leave_the_last_word_to_the_policy(cluster: SandboxCluster, node: str, policy: str) -> None:
    pod(cluster, "a")
    for name in ("web-pdb", "second"):
        budget(cluster, allowed=1, name=name)
    drain = Drain(cluster, drain={"timeout": "5m", "whenTimeExpires": policy})
    assert drain.run() is None
    assert drain.deferred is not None
    assert drain.deferred.kwargs is not None
    drain.deferred.kwargs["started"] -= 301
    if policy == "fail":
        with pytest.raises(DeadlinePassed, match=r"default/a on n1: .*second .*web-pdb"):
            drain.run()
        return
    assert drain.run() is None
    end(cluster, "a")
    assert outcomes(drain.run()) == {"default/a": "Forced"}


def test_a_pod_that_came_back_elsewhere_under_its_name_is_not_evicted(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod(cluster, "web-0", owner="StatefulSet")
    plan, moves = drain_operators.plan_drain, iter([True])

    def planned_before_it_moved(*args: Any) -> Any:
        found = plan(*args)
        if next(moves, False):
            end(cluster, "web-0")
            pod(cluster, "web-0", "other", owner="StatefulSet")
        return found

    monkeypatch.setattr(drain_operators, "plan_drain", planned_before_it_moved)
    report = Drain(cluster).run()
    assert report is not None
    assert (report["nodes"], report["pods"]) == ([node], [])
    there = cluster.kube.get(ObjectRef(POD, "web-0", "default")) or {}
    assert there["spec"]["nodeName"] == "other"
    assert "deletionTimestamp" not in there["metadata"]


def test_when_time_is_up_the_pods_and_their_budget_are_named(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "a")
    budget(cluster, allowed=0)
    with pytest.raises(DeadlinePassed, match=r"default/a on n1: PodDisruptionBudget web-pdb \(allowed disruptions 0\)"):
        Drain(cluster, drain={"timeout": "0s"}).run()
    assert cluster.kube.get(ObjectRef(POD, "a", "default")) is not None


def test_a_retry_does_not_begin_a_new_deadline(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "a")
    budget(cluster, allowed=0)
    drain = Drain(cluster)
    assert drain.run() is None
    drain.context["task_state_store"]["wait"]["started"] -= 3600
    drain.deferred = None
    with pytest.raises(DeadlinePassed, match="default/a on n1"):
        drain.run()


def test_a_retry_still_tells_whom_the_first_try_evicted(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod(cluster, "a")
    pod(cluster, "b")
    drain = Drain(cluster)
    evict = type(cluster.kube).evict

    def dies(self: Any, namespace: str, name: str, **options: Any) -> None:
        if name == "b" and not options.get("dry_run"):
            raise RuntimeError("the worker breaks down")
        evict(self, namespace, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(cluster.kube), "evict", dies)
        with pytest.raises(RuntimeError, match="breaks down"):
            drain.run()
    end(cluster, "a")
    assert drain.run() is None
    end(cluster, "b")
    drain.deferred = None  # another try of the task, after the wait
    assert outcomes(drain.run()) == {"default/a": "Evicted", "default/b": "Evicted"}
    drain.context["ti"].max_tries += 3  # a person has cleared it: it begins anew
    assert outcomes(drain.run()) == {}


def test_evictions_are_under_way_at_the_same_time(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for all the others: one after another would never end."""
    count = 6
    for index in range(count):
        pod(cluster, f"p{index}")
    evict, all_there = KubeClient.evict, threading.Barrier(count)

    def together(kube: KubeClient, namespace: str, name: str, **options: Any) -> None:
        all_there.wait(10)
        evict(kube, namespace, name, **options)

    monkeypatch.setattr(KubeClient, "evict", together)
    drain = Drain(cluster)
    assert drain.run() is None
    assert drain.waits_for["blocked"] == []
    for index in range(count):
        end(cluster, f"p{index}")
    assert set(outcomes(drain.run()).values()) == {"Evicted"}


def test_when_time_is_up_the_policy_may_delete_past_budgets(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "a")
    budget(cluster, allowed=0)
    drain = Drain(cluster, drain={"timeout": "0s", "whenTimeExpires": "delete"})
    assert drain.run() is None
    assert (cluster.kube.get(ObjectRef(POD, "a", "default")) or {})["metadata"]["deletionTimestamp"]
    end(cluster, "a")
    report = drain.run()
    assert outcomes(report) == {"default/a": "Forced"}


def test_a_pod_that_must_not_go_stops_the_drain_before_any_eviction_and_any_cordon(
    cluster: SandboxCluster, node: str
) -> None:
    pod(cluster, "a")
    pod(cluster, "bare", owner=None)
    with pytest.raises(PermanentError, match="default/bare on n1 has no controller") as caught:
        Drain(cluster).run()
    assert caught.value.reason == "DrainRefused"
    assert "deletionTimestamp" not in (cluster.kube.get(ObjectRef(POD, "a", "default")) or {})["metadata"]
    assert "unschedulable" not in (cluster.kube.get(ObjectRef(NODE, node)) or {}).get("spec", {})


def test_only_our_own_cordon_is_taken_back_when_capacity_is_asked_for_again(cluster: SandboxCluster, node: str) -> None:
    cluster.kube.patch(ObjectRef(NODE, "other"), {"spec": {"unschedulable": True}})
    Drain(cluster).run()
    marked = cluster.kube.get(ObjectRef(NODE, node)) or {}
    assert marked["metadata"]["annotations"][ANNOTATION_CORDONED_BY] == "gpu_lifecycle.demo/manual__1"
    nodes = {item["metadata"]["name"]: item for item in take_back_cordons(cluster.kube, cluster.kube.list(NODE))}
    assert "unschedulable" not in nodes[node].get("spec", {})
    assert ANNOTATION_CORDONED_BY not in (nodes[node]["metadata"].get("annotations") or {})
    assert nodes["other"]["spec"]["unschedulable"] is True


def test_the_cordon_of_a_quarantine_outlives_a_drain_that_was_taken_back(cluster: SandboxCluster, node: str) -> None:
    ref = ObjectRef(NODE, node)
    annotations = {ANNOTATION_CORDONED_BY: "gpu_teardown.demo/1", ANNOTATION_QUARANTINED: "{}"}
    cluster.kube.patch(ref, {"metadata": {"annotations": annotations}, "spec": {"unschedulable": True}})
    (after,) = take_back_cordons(cluster.kube, [cluster.kube.get(ref) or {}])
    assert after["spec"]["unschedulable"] is True
    assert after["metadata"]["annotations"] == {ANNOTATION_QUARANTINED: "{}"}


def test_the_cordon_of_an_interruption_outlives_a_drain_that_was_taken_back(cluster: SandboxCluster, node: str) -> None:
    ref = ObjectRef(NODE, node)
    cordon = {ANNOTATION_CORDONED_BY: "interruption/6f1c"}
    cluster.kube.patch(ref, {"metadata": {"annotations": cordon}, "spec": {"unschedulable": True}})
    (after,) = take_back_cordons(cluster.kube, [cluster.kube.get(ref) or {}])
    assert after["spec"]["unschedulable"] is True
    assert after["metadata"]["annotations"] == cordon
    assert take_back_own_cordons(cluster.kube, [after]) == []


def test_a_persons_cordon_is_not_marked_as_ours(cluster: SandboxCluster, node: str) -> None:
    cluster.kube.patch(ObjectRef(NODE, node), {"spec": {"unschedulable": True}})
    Drain(cluster).run()
    (after,) = take_back_cordons(cluster.kube, [cluster.kube.get(ObjectRef(NODE, node)) or {}])
    assert after["spec"]["unschedulable"] is True


def test_force_and_grace_come_from_the_spec(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "bare", owner=None)
    drain = Drain(cluster, drain={"force": True, "gracePeriod": 7})
    assert drain.run() is None
    assert (cluster.kube.get(ObjectRef(POD, "bare", "default")) or {})["metadata"]["deletionGracePeriodSeconds"] == 7


def test_our_own_placeholder_needs_no_force(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "ask", owner=None, labels={"gpu-fleet.io/component": "placeholder"})
    drain = Drain(cluster)
    assert drain.run() is None
    end(cluster, "ask")
    assert outcomes(drain.run()) == {"default/ask": "Evicted"}


def test_a_pod_of_a_daemon_set_stays(cluster: SandboxCluster, node: str) -> None:
    template = {"metadata": {"labels": {"d": "d"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    cluster.kube.create(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"d": "d"}}, "template": template},
        }
    )
    pod(cluster, "agent", owner="DaemonSet")
    assert outcomes(Drain(cluster).run()) == {"default/agent": "Left"}


def test_disabled_eviction_deletes_at_once(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "a")
    budget(cluster, allowed=0)
    drain = Drain(cluster, drain={"disableEviction": True})
    assert drain.run() is None
    end(cluster, "a")
    assert outcomes(drain.run()) == {"default/a": "Deleted"}


def test_a_pool_that_is_not_managed_is_left_alone(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "a")
    pools = [{"name": POOL, "instanceTypes": ["g5.xlarge"], "manage": False}]
    drain = Drain(cluster, nodePools=pools, teardown={"uninstallKarpenter": False})
    report = drain.run()
    assert report is not None
    assert report["skipped"] == "manage: false"
    assert "unschedulable" not in (cluster.kube.get(ObjectRef(NODE, node)) or {}).get("spec", {})


REMOVED = "removed"


@pytest.fixture
def removed_pool(cluster: SandboxCluster, node: str) -> Iterator[str]:
    """A node of a NodePool that was ours and that the file no longer has."""
    kube = cluster.kube
    define_karpenter(kube, "karpenter.sh_nodepools.yaml")
    for name in (REMOVED, "cpu"):
        manifest = build("node_pool", demo_spec(), pool=POOL)[0]
        labels = manifest["metadata"]["labels"] if name == REMOVED else {}
        made = kube.apply({**manifest, "metadata": {"name": name, "labels": labels}})
        if name == REMOVED:
            kube.apply(frozen(made, "gpu_lifecycle.demo/manual__1"), force=True)
    labels = {"karpenter.sh/nodepool": REMOVED}
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9", "labels": labels}})
    yield "n9"
    for name in (REMOVED, "cpu"):
        kube.delete(ObjectRef(NODE_POOL, name))
    kube.delete(ObjectRef(NODE, "n9"))


def removed_pools_drain(cluster: SandboxCluster, **spec: Any) -> Drain:
    drain = Drain(cluster, **spec)
    drain.operator = DrainRemovedPoolsOperator(task_id="drain", drained=[POOL], plan_task_id="plan_again")
    return drain


def test_a_pool_that_the_file_no_longer_has_is_drained_by_the_same_rules(
    cluster: SandboxCluster, removed_pool: str
) -> None:
    pod(cluster, "bare", removed_pool, owner=None)
    with pytest.raises(PermanentError, match="default/bare on n9 has no controller") as caught:
        removed_pools_drain(cluster).run()
    assert caught.value.reason == "DrainRefused"
    drain = removed_pools_drain(cluster, drain={"force": True})
    assert drain.run() is None
    assert drain.waits_for["nodes"] == [removed_pool]
    end(cluster, "bare")
    report = drain.run()
    assert outcomes(report) == {"default/bare": "Evicted"}
    for other in ("n1", "other"):
        assert "unschedulable" not in (cluster.kube.get(ObjectRef(NODE, other)) or {}).get("spec", {})


@pytest.mark.parametrize(
    ("way", "ready", "drained"),
    [("ByKarpenter", False, ["n8", "n9"]), ("Emergency", True, ["n9"])],
    ids=["it restarts at this moment", "it has come back since"],
)
def test_whose_nodes_are_drained_is_by_the_plan_and_not_by_whether_karpenter_is_ready_just_now(
    cluster: SandboxCluster, removed_pool: str, way: str, ready: bool, drained: list[str]
) -> None:
    """Of a NodePool that is gone nobody knows whose it was: Karpenter takes its nodes, an emergency does not."""
    kube, labels = cluster.kube, {"app.kubernetes.io/name": "karpenter"}
    gone = {"name": "n8", "labels": {"karpenter.sh/nodepool": "gone"}}
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": gone})
    controller = ObjectRef(POD, "karpenter-0", "kube-system")
    metadata = {"name": controller.name, "namespace": controller.namespace, "labels": labels}
    spec = {"containers": [{"name": "controller", "image": "x"}]}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    status = {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    kube.patch(controller, {"status": status}, subresource="status")
    drain = removed_pools_drain(cluster, teardown={"whenKarpenterIsDead": "emergency"})
    drain.context["ti"].xcoms["return_value"] = {"plan": {"way": way}}
    report = drain.run()
    kube.delete(ObjectRef(NODE, "n8"))
    kube.delete(controller, grace_seconds=0)
    assert report is not None
    assert report["nodes"] == drained


def test_without_such_a_pool_there_is_nothing_to_drain(cluster: SandboxCluster, removed_pool: str) -> None:
    cluster.kube.delete(ObjectRef(NODE, removed_pool))
    report = removed_pools_drain(cluster).run()
    assert report is not None
    assert "no longer has" in report["skipped"]


def test_an_unknown_pool_is_named(cluster: SandboxCluster) -> None:
    drain = Drain(cluster)
    drain.operator = DrainPoolOperator(task_id="drain", node_pool="nope")
    with pytest.raises(SpecError, match="no pool 'nope'"):
        drain.run()


# --- a kubelet that does not answer ----------------------------------------------------------------------------------


def kubelet_stops(cluster: SandboxCluster, node: str) -> None:
    """What the node lifecycle controller writes (kubernetes pkg/controller/nodelifecycle)."""
    unknown = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting",
    }
    cluster.kube.patch(ObjectRef(NODE, node), {"status": {"conditions": [unknown]}}, subresource="status")


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The cluster's clock has gone on."""
    monkeypatch.setattr(KubeClient, "now", lambda self: time.time() + seconds)


def test_a_pod_past_its_grace_period_on_a_dead_node_is_passed_over(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod(cluster, "web-1")
    kubelet_stops(cluster, node)
    drain = Drain(cluster)
    assert drain.run() is None
    assert node in drain.waits_for["dead"]
    assert drain.run() is None, "its grace period is not over"
    later(monkeypatch, 3600)
    report = drain.run()
    assert outcomes(report) == {"default/web-1": "Left"}
    assert report is not None
    assert report["pods"][0]["reason"] == "NodeNotReady"


def test_a_pod_past_its_grace_period_on_a_ready_node_is_waited_for(
    cluster: SandboxCluster, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod(cluster, "web-1")
    drain = Drain(cluster)
    assert drain.run() is None
    later(monkeypatch, 3600)
    assert drain.run() is None
    end(cluster, "web-1")
    assert drain.run() is not None


def test_the_wait_ends_when_the_next_pod_is_to_be_passed_over(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "web-1")
    kubelet_stops(cluster, node)
    drain = Drain(cluster, drain={"timeout": "1h"}, deadlines={"drain": "2h"})
    assert drain.run() is None
    assert drain.deferred is not None
    assert drain.deferred.trigger.deadline < time.time() + 300  # type: ignore[attr-defined]


def test_when_time_is_up_a_dead_node_is_named_and_the_advice_helps(cluster: SandboxCluster, node: str) -> None:
    pod(cluster, "web-1")
    budget(cluster, 0)
    kubelet_stops(cluster, node)
    drain = Drain(cluster)
    assert drain.run() is None
    assert drain.deferred is not None
    drain.deferred.kwargs["started"] = time.time() - 3600  # type: ignore[index]
    said = r"node n1 is not Ready \(NodeStatusUnknown Kubelet stopped posting\)"
    with pytest.raises(DeadlinePassed, match=said) as passed:
        drain.run()
    assert "delete the node's NodeClaim" in passed.value.message
    assert "delete these pods" not in passed.value.message


def test_where_the_spec_allows_a_pod_on_a_dead_node_is_deleted_without_a_kubelets_word(
    cluster: SandboxCluster, node: str
) -> None:
    pod(cluster, "web-1")
    kubelet_stops(cluster, node)
    drain = Drain(cluster, drain={"whenTimeExpires": "delete", "timeout": "10m"}, deadlines={"drain": "2h"})
    assert drain.run() is None
    assert cluster.kube.list(POD, "default") != [], "it terminates, and nobody ends it"
    assert drain.deferred is not None
    drain.deferred.kwargs["started"] = time.time() - 1200  # type: ignore[index]
    report = drain.run() or drain.run()
    assert outcomes(report) == {"default/web-1": "Forced"}
    assert cluster.kube.list(POD, "default") == []
