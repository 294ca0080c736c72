"""The task that drains interrupted nodes, against the sandbox's API server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import Asset

from gpu_fleet.core.interruptions.event import Case, Payload
from gpu_fleet.core.interruptions.handling import Handled, cause_of
from gpu_fleet.core.interruptions.marks import Mark
from gpu_fleet.core.interruptions.messages import Kind, Notice
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.operators.interruptions import drain as module
from gpu_fleet.operators.interruptions.drain import DISPLACED, INTERRUPTION, PLANNED, DrainInterruptedOperator
from gpu_fleet.operators.spec import FROZEN
from tests.unit.airflow_context import StateStore, TaskInstance, spec_at
from tests.unit.operators.draining_world import NAMESPACE, World
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL = "shared-a10g"
OURS: dict[str, Any] = {"karpenter": {"interruptionQueue": None}, "interruptions": {"margin": "1s"}}
DAG_ID = "gpu_spot_drain.demo"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml")
        yield cluster


@pytest.fixture
def world(shared: SandboxCluster) -> Iterator[World]:
    found = World(shared)
    try:
        yield found
    finally:
        found.clear()
        for item in shared.kube.list(NODE_CLAIM):
            shared.kube.delete(ObjectRef(NODE_CLAIM, item["metadata"]["name"]))


def join(world: World, name: str, instance: str) -> Any:
    """A node of the pool, and its NodeClaim."""
    labels = {"karpenter.sh/nodepool": POOL, "node.kubernetes.io/instance-type": "g5.xlarge"}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"providerID": f"aws:///us-west-2a/{instance}"},
    }
    world.kube.create(node)
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}
    claim = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {"name": f"claim-{name}", "labels": {"karpenter.sh/nodepool": POOL}},
        "spec": {"nodeClassRef": reference, "requirements": []},
    }
    world.kube.create(claim)
    status = {"nodeName": name, "providerID": f"aws:///us-west-2a/{instance}"}
    world.kube.patch(ObjectRef(NODE_CLAIM, f"claim-{name}"), {"status": status}, subresource="status")
    allocatable = {"allocatable": {"nvidia.com/gpu": "4"}, "capacity": {"nvidia.com/gpu": "4"}}
    return world.kube.patch(ObjectRef(NODE, name), {"status": allocatable}, subresource="status")


def spot(instance: str, seconds: float = 20.0, kind: Kind = Kind.SPOT) -> Notice:
    now = time.time()
    return Notice(kind, instance, now, None if kind is Kind.REBALANCE else now + seconds, "terminate", "e1")


class Event:
    def __init__(self, *notices: Notice, **skipped: int) -> None:
        payload = Payload("demo", time.time(), tuple(Case(each) for each in notices), skipped)
        self.extra = {"from_trigger": True, "payload": payload.to_json()}


class Run:
    """One task, whose tries share their state."""

    def __init__(self, world: World, *events: Event, run_id: str = "r1", **changes: Any) -> None:
        spec = spec_at(str(world.cluster.access.path), **_merged(changes))
        self.ti = TaskInstance(dag_id=DAG_ID, run_id=run_id, spec=spec)
        self.store = StateStore()
        self.store.set(FROZEN, {"spec": spec.to_json(), "digest": spec.digest})
        self.operator = DrainInterruptedOperator(task_id="drain", cluster="demo")
        self.context = {
            "ti": self.ti,
            "params": {},
            "task_state_store": self.store,
            "triggering_asset_events": {"asset": list(events)} if events else {},
        }

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = self.operator.execute(self.context)
        return found

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ti.xcoms[INTERRUPTION]
        return found

    def outcomes(self) -> dict[str, str]:
        return {pod["name"]: pod["outcome"] for pod in self.report["pods"]}


def _merged(changes: dict[str, Any]) -> dict[str, Any]:
    from gpu_fleet.hooks.files.clusters import load_cluster

    value = load_cluster("demo").to_json()
    return {key: {**value[key], **change} if isinstance(change, dict) else change for key, change in changes.items()}


def annotations_of(world: World, name: str) -> dict[str, str]:
    found: dict[str, str] = (world.kube.get(ObjectRef(NODE, name)) or {})["metadata"].get("annotations") or {}
    return found


def test_an_interrupted_node_is_marked_emptied_and_removed(world: World) -> None:
    join(world, "n1", "i-0000000a")
    join(world, "n2", "i-0000000b")
    world.pod("a")
    world.pod("b")
    world.pod("elsewhere", "n2")
    notice = spot("i-0000000a")
    run = Run(world, Event(notice, weaker=2), Event(notice), **OURS)
    with world.kubelets():
        result = run()
    assert run.outcomes() == {"a": "Evicted", "b": "Evicted"}
    assert (result["pools"], result["lost"], result["forced"]) == ({POOL: ["n1"]}, 0, 0)
    (node,) = run.report["nodes"]
    assert (node["outcome"], node["way"], node["kind"]) == ("Drained", "Drain", "SpotInterruption")
    assert node["removed"] == "NodeClaim claim-n1 deleted"
    assert node["emptiedAt"] < node["deadline"]
    assert run.report["skipped"] == {"weaker": 2}
    assert world.kube.get(ObjectRef(NODE_CLAIM, "claim-n1")) is None
    assert world.kube.get(ObjectRef(NODE_CLAIM, "claim-n2")) is not None
    assert world.get("elsewhere") is not None
    live = world.kube.get(ObjectRef(NODE, "n1")) or {}
    assert live["spec"]["unschedulable"]
    mark = Mark.of(live)
    assert mark is not None
    assert mark.notice == notice
    (displaced,) = run.ti.xcoms[DISPLACED]
    assert (displaced["kind"], displaced["name"], len(displaced["evicted"])) == ("ReplicaSet", "web", 2)


def test_a_second_run_for_the_same_notice_leaves_the_node_to_the_first(world: World) -> None:
    join(world, "n1", "i-0000000a")
    event = Event(spot("i-0000000a"))
    Run(world, event, **OURS)()
    second = Run(world, event, run_id="r2", **OURS)
    assert second()["nodes"] == 0
    assert second.report["elsewhere"] == {"n1": f"{DAG_ID}/r1"}
    assert "already drained by another run" in second.report["headline"]


@pytest.mark.parametrize(("state", "taken"), [("running", False), ("failed", True), (None, True)])
def test_a_node_of_a_run_that_died_is_taken_over(world: World, state: str | None, taken: bool) -> None:
    join(world, "n1", "i-0000000a")
    notice = spot("i-0000000a")
    world.pod("a")
    claim = {
        "gpu-fleet.io/interruption": Mark(notice, notice.at).text(),
        "gpu-fleet.io/interruption-handled-by": Handled(f"{DAG_ID}/dead", cause_of(notice)).text(),
    }
    world.kube.patch(ObjectRef(NODE, "n1"), {"metadata": {"annotations": claim}})
    run = Run(world, **OURS)
    if state is not None:
        run.ti.run_states[DAG_ID, "dead"] = state
    with world.kubelets():
        run()
    assert run.outcomes() == ({"a": "Evicted"} if taken else {})


def test_what_a_budget_holds_is_forced_in_time_for_its_grace(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a", grace=2)
    world.budget(0)
    run = Run(world, Event(spot("i-0000000a", 6.0)), **OURS)
    with world.kubelets(takes=1.0):
        result = run()
    assert run.outcomes() == {"a": "Forced"}
    assert result["forced"] == 1
    (pod,) = run.report["pods"]
    assert "web-pdb" in pod["words"]
    assert pod["gone_at"] <= pod["deadline"]
    assert run.report["nodes"][0]["outcome"] == "Forced"


def test_where_karpenter_evicts_we_only_watch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KARPENTER_PATIENCE_S", 8.0)
    join(world, "n1", "i-0000000a")
    uid = world.pod("a")
    run = Run(world, Event(spot("i-0000000a")), interruptions={"margin": "1s"})
    timer = threading.Timer(0.5, lambda: world.kube.evict(NAMESPACE, "a", uid=uid))
    timer.start()
    with world.kubelets():
        run()
    timer.join()
    assert run.outcomes() == {"a": "Terminated"}
    assert run.report["nodes"][0]["way"] == "Watch"
    assert not any(pod["asked_at"] for pod in run.report["pods"])


def test_pods_that_karpenter_evicted_before_the_run_began_are_in_the_report(world: World) -> None:
    """The trigger has seen them; their objects are gone."""
    join(world, "n1", "i-0000000a")
    still = world.pod("still-there")
    notice = spot("i-0000000a")
    pods = [
        {"namespace": NAMESPACE, "name": name, "uid": uid, "workload": "ReplicaSet/web", "owner_uid": "u-web"}
        | {"gpus": 1, "started_at": notice.at - 100.0, "grace": 5.0}
        for name, uid in (("gone", "uid-gone"), ("still-there", still))
    ]
    event = Event()
    payload = Payload("demo", time.time(), (Case(notice, node="n1", marked=True, cordoned=True, pods=tuple(pods)),))
    event.extra = {"payload": payload.to_json()}
    run = Run(world, event, **OURS)
    with world.kubelets():
        run()
    assert run.outcomes() == {"gone": "Gone", "still-there": "Evicted"}
    (displaced,) = run.ti.xcoms[DISPLACED]
    assert displaced["evicted"] == sorted(["uid-gone", still])
    assert 190.0 < run.report["gpuSeconds"] < 290.0
    assert run.report["nodes"][0]["outcome"] == "Drained"


def departed(world: World, store: StateStore, run_id: str = "r1", ago: float = 0.0) -> Run:
    """A run for a node that the trigger saw, and that is gone."""
    now = time.time() - ago
    notice = Notice(Kind.SPOT, "i-0000000a", now, now + 120, "terminate", "e1")
    pod = {"namespace": NAMESPACE, "name": "a", "uid": "uid-a", "workload": "Job/train", "owner_uid": "u-train"}
    pods = ({**pod, "gpus": 1, "started_at": now - 50.0, "grace": 5.0},)
    event = Event()
    case = Case(notice, node="n1", node_uid="u1", claim="c1", pool=POOL, marked=True, cordoned=True, pods=pods)
    event.extra = {"payload": Payload("demo", now, (case,)).to_json()}
    run = Run(world, event, run_id=run_id, **OURS)
    asset = Asset(name="gpu-fleet://demo/interruptions", uri="gpu-fleet://demo/interruptions")
    run.context["asset_state_store"] = {asset: store}
    return run


def test_a_node_that_was_gone_before_the_run_began_is_reported_and_its_pool_restored(world: World) -> None:
    run = departed(world, StateStore())
    result = run()
    assert result["pools"] == {POOL: ["n1"]}
    (node,) = run.report["nodes"]
    assert (node["node"], node["outcome"], node["pool"]) == ("n1", "Drained", POOL)
    assert run.outcomes() == {"a": "Gone"}
    (displaced,) = run.ti.xcoms[DISPLACED]
    assert (displaced["name"], displaced["since"]) == ("train", node["at"])
    assert run.report["gpuSeconds"] > 0
    assert run.report["usd"] is None, "which instance type it was is unknown, and nothing is not what it cost"


def test_a_second_message_about_a_node_that_is_gone_changes_nothing(world: World) -> None:
    store = StateStore()
    first = departed(world, store)
    first()
    second = departed(world, store, "r2")
    second.context["triggering_asset_events"] = first.context["triggering_asset_events"]
    assert second()["pools"] == {}
    assert second.report["elsewhere"] == {"n1": f"{DAG_ID}/r1"}


def test_a_node_that_is_gone_after_its_end_is_no_success(world: World) -> None:
    run = departed(world, StateStore(), ago=300.0)
    run()
    assert run.report["nodes"][0]["outcome"] == "Unseen"


def test_a_karpenter_that_does_not_begin_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KARPENTER_PATIENCE_S", 1.0)
    join(world, "n1", "i-0000000a")
    world.pod("a")
    run = Run(world, Event(spot("i-0000000a")), interruptions={"margin": "1s"})
    with world.kubelets():
        run()
    assert run.outcomes() == {"a": "Evicted"}
    assert run.report["nodes"][0]["removed"] == "NodeClaim claim-n1 deleted"


def test_an_instance_that_ends_already_frees_its_pods_for_their_controllers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a")
    run = Run(world, Event(spot("i-0000000a", 0.0, Kind.TERMINATING)), **OURS)
    monkeypatch.setattr(module, "ENDING_S", 3.0)
    run()  # no kubelet is left to end it
    assert run.outcomes() == {"a": "Lost"}
    assert ((world.get("a") or {})["metadata"]).get("deletionTimestamp")
    assert run.report["nodes"][0]["outcome"] == "Lost"
    assert run.report["nodes"][0]["way"] == "Ending"


def test_on_a_rebalance_recommendation_each_pod_gets_what_it_asked_for(world: World) -> None:
    join(world, "n1", "i-0000000a")
    wishes = {"move": "evict", "save": "signal", "stay": "nothing", "typo": "evicted"}
    for name, wish in wishes.items():
        world.pod(name, annotations={"gpu-fleet.io/on-rebalance": wish})
    world.pod("silent")
    run = Run(world, Event(spot("i-0000000a", kind=Kind.REBALANCE)), **OURS)
    with world.kubelets():
        run()
    assert run.outcomes() == {"move": "Evicted"}
    told = {
        pod["metadata"]["name"]
        for pod in world.kube.list(POD)
        if "gpu-fleet.io/interruption" in (pod["metadata"].get("annotations") or {})
    }
    assert told == {"save"}
    assert not (world.kube.get(ObjectRef(NODE, "n1")) or {})["spec"].get("unschedulable")
    assert world.kube.get(ObjectRef(NODE_CLAIM, "claim-n1")) is not None
    assert run.report["nodes"][0]["outcome"] == "Noted"


def test_what_needs_a_new_node_first_is_planned(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a")
    changes: dict[str, Any] = {"karpenter": {"interruptionQueue": None}, "interruptions": {"rebalance": "replace"}}
    run = Run(world, Event(spot("i-0000000a", kind=Kind.REBALANCE)), **changes)
    run()
    (planned,) = run.ti.xcoms[PLANNED]["nodes"]
    assert planned == {"node": "n1", "instance": "i-0000000a", "kind": "RebalanceRecommendation", "deadline": None}
    assert run.ti.xcoms[PLANNED]["at"] == pytest.approx(world.kube.now(), abs=10.0)
    assert world.get("a") is not None


def test_nothing_is_done_to_nodes_of_others_and_unknown_instances_are_named(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.kube.patch(ObjectRef(NODE, "n1"), {"metadata": {"labels": {"karpenter.sh/nodepool": "of-others"}}})
    world.pod("a")
    run = Run(world, Event(spot("i-0000000a"), spot("i-0000000c")), **OURS)
    run()
    assert annotations_of(world, "n1") == {}
    assert world.get("a") is not None
    assert set(run.report["unknown"]) == {"i-0000000a", "i-0000000c"}


def test_an_event_that_cannot_be_read_is_reported_and_the_others_count(world: World) -> None:
    join(world, "n1", "i-0000000a")
    broken = Event()
    broken.extra = {"payload": {"cluster": "demo"}}
    run = Run(world, broken, Event(spot("i-0000000a")), **OURS)
    assert run()["nodes"] == 1
    assert "cannot be read" in run.report["problems"][0]


def test_a_run_that_a_person_starts_without_any_mark_has_nothing_to_do(world: World) -> None:
    join(world, "n1", "i-0000000a")
    assert Run(world, **OURS)()["headline"] == "Nothing to do: no node is interrupted"


def test_a_try_that_follows_a_killed_one_knows_what_was_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a")
    run = Run(world, Event(spot("i-0000000a")), **OURS)

    def killed(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(module, "remove_nodes", killed)
    with world.kubelets(), pytest.raises(SystemExit):
        run()
    monkeypatch.undo()
    run()
    assert run.outcomes() == {"a": "Evicted"}
    assert world.kube.get(ObjectRef(NODE_CLAIM, "claim-n1")) is None


@pytest.mark.parametrize("node_stays", [True, False], ids=["node-there", "node-gone"])
def test_a_try_that_was_killed_before_its_report_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, node_stays: bool
) -> None:
    """The nodes are marked as done by then; the pool must be restored and the pods reported all the same."""
    node = join(world, "n1", "i-0000000a")
    uid = world.pod("a")
    notice = spot("i-0000000a")
    seen = {"namespace": NAMESPACE, "name": "a", "uid": uid, "workload": "Job/train", "owner_uid": "u-train"}
    seen |= {"gpus": 1, "started_at": notice.at - 50.0, "grace": 5.0}
    case = Case(notice, node="n1", node_uid=node["metadata"]["uid"], claim="claim-n1", pool=POOL, pods=(seen,))
    event = Event()
    event.extra = {"payload": Payload("demo", time.time(), (case,)).to_json()}
    run = Run(world, event, **OURS)

    def killed(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(DrainInterruptedOperator, "_tell", killed)
    with world.kubelets(), pytest.raises(SystemExit):
        run()
    monkeypatch.undo()
    assert Handled.of(world.kube.get(ObjectRef(NODE, "n1")) or {}) == Handled(
        f"{DAG_ID}/r1", cause_of(notice), done=True, way="Drain"
    )
    if not node_stays:
        world.kube.delete(ObjectRef(NODE, "n1"))
    result = run()
    assert result["pools"] == {POOL: ["n1"]}
    assert run.outcomes() == {"a": "Evicted"}
    (row,) = run.report["nodes"]
    assert row["outcome"] == "Drained"
    assert run.report["elsewhere"] == {}
    (displaced,) = run.ti.xcoms[DISPLACED]
    assert displaced["evicted"] == [uid]
