"""A drain by hand, task by task, against the sandbox's API server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, DagRunTriggerException, TaskAwaitingInput

from gpu_fleet.core.errors import DeadlinePassed, PermanentError, SpecError
from gpu_fleet.core.interruptions.messages import Kind
from gpu_fleet.core.interruptions.planned import PlannedNode
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, ObjectRef
from gpu_fleet.core.teardown.approval import Answer, answer_to
from gpu_fleet.operators.interruptions import manual_drain, removal
from gpu_fleet.operators.interruptions.cordons import EVICTING, CordonNodesOperator, UndoCordonsOperator
from gpu_fleet.operators.interruptions.drain import DISPLACED, INTERRUPTION, PLANNED
from gpu_fleet.operators.interruptions.manual_drain import DrainByHandOperator, RemoveDrainedOperator
from gpu_fleet.operators.interruptions.manual_plan import DrainApprovalOperator, PlanDrainOperator
from gpu_fleet.operators.interruptions.planned import StartDrainOperator
from tests.unit.airflow_context import StateStore, TaskInstance, spec_at
from tests.unit.operators.draining_world import World
from tests.unit.operators.interruptions.test_drain import _merged, annotations_of, join
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

DAG_ID = "gpu_drain.demo"
RUN = f"{DAG_ID}/manual__1"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml")
        yield cluster


@pytest.fixture
def world(shared: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("gpu_fleet.operators.capacity.removal.SCHEDULER_LAG_S", 0.0)
    found = World(shared)
    try:
        yield found
    finally:
        found.clear()
        for item in shared.kube.list(NODE_CLAIM):
            shared.kube.delete(ObjectRef(NODE_CLAIM, item["metadata"]["name"]))


class RunInstance(TaskInstance):
    """A task instance whose XComs are those of a whole run."""

    task_id = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.left: dict[tuple[str, str], Any] = {}

    def xcom_pull(self, task_ids: str | None = None, key: str = "return_value") -> Any:
        return self._frozen if task_ids == "freeze_spec" else self.left.get((task_ids or "", key))

    def xcom_push(self, key: str, value: Any) -> None:
        self.left[self.task_id, key] = value


class Drain:
    """One run, whose tasks are called one by one."""

    def __init__(self, world: World, params: dict[str, Any], **changes: Any) -> None:
        spec = spec_at(str(world.cluster.access.path), **_merged(changes))
        self.ti = RunInstance(dag_id=DAG_ID, run_id="manual__1", spec=spec)
        self.params = params
        self.stores: dict[str, StateStore] = {}
        self.operators: dict[str, Any] = {
            "plan": PlanDrainOperator(task_id="plan"),
            "approve": DrainApprovalOperator(task_id="approve", plan_task_id="plan", subject="?"),
            "plan_again": PlanDrainOperator(task_id="plan_again", approved_task_id="plan"),
            "cordon": CordonNodesOperator(task_id="cordon", plan_task_id="plan_again"),
            "drain": DrainByHandOperator(task_id="drain", plan_task_id="plan_again", approved_task_id="plan"),
            "remove": RemoveDrainedOperator(task_id="remove", plan_task_id="plan_again"),
            "undo_cordons": UndoCordonsOperator(task_id="undo_cordons", last="remove"),
        }

    def task(self, name: str) -> Any:
        self.ti.task_id = name
        context = {
            "ti": self.ti,
            "params": self.params,
            "task_state_store": self.stores.setdefault(name, StateStore()),
        }
        found = self.operators[name].execute(context)
        self.ti.left[name, "return_value"] = found
        self.ti.task_states[name] = "success"
        return found

    def tasks(self, *names: str) -> Any:
        return [self.task(name) for name in names][-1]

    def until(self, name: str) -> Any:
        """Everything up to a task, in order."""
        names = list(self.operators)
        return self.tasks(*names[: names.index(name) + 1])

    def report(self, task: str = "drain") -> dict[str, Any]:
        found: dict[str, Any] = self.ti.left[task, INTERRUPTION]
        return found

    def outcomes(self) -> dict[str, str]:
        return {pod["name"]: pod["outcome"] for pod in self.report()["pods"]}


def is_cordoned(world: World, name: str) -> bool:
    return bool((world.kube.get(ObjectRef(NODE, name)) or {})["spec"].get("unschedulable"))


def claims(world: World) -> set[str]:
    return {item["metadata"]["name"] for item in world.kube.list(NODE_CLAIM)}


# --- the whole way ---------------------------------------------------------------------------------------------------
def test_a_node_is_cordoned_emptied_and_removed_and_the_report_says_so(world: World) -> None:
    join(world, "n1", "i-0000000a")
    join(world, "n2", "i-0000000b")
    world.pod("a")
    world.pod("agent", owner="DaemonSet")
    world.kube.create(_daemon_set())
    world.pod("elsewhere", "n2")
    run = Drain(world, {"nodes": ["n1"], "reason": "fan is loud"})
    with world.kubelets():
        run.until("drain")
    assert run.outcomes() == {"a": "Evicted", "agent": "Left"}
    assert run.ti.left["drain", EVICTING] is True
    (displaced,) = run.ti.left["drain", DISPLACED]
    assert displaced["name"] == "web"
    assert annotations_of(world, "n1")["gpu-fleet.io/cordoned-by"] == RUN
    assert run.task("remove") == {"n1": "NodeClaim claim-n1 deleted"}
    assert claims(world) == {"claim-n2"}
    assert world.get("elsewhere") is not None
    assert not is_cordoned(world, "n2")
    (node,) = run.report("remove")["nodes"]
    assert (node["why"], node["removed"], node["outcome"]) == ("fan is loud", "NodeClaim claim-n1 deleted", "Drained")
    assert run.report("remove")["headline"] == "1 node of shared-a10g drained: 1 pod ended, none lost"
    assert run.task("undo_cordons")["why"] == "the drain has come to its end"
    world.kube.delete(ObjectRef(_daemon_set_kind(), "web", "default"))


def _daemon_set_kind() -> Any:
    from gpu_fleet.core.kubernetes.kinds import DAEMON_SET

    return DAEMON_SET


def _daemon_set() -> dict[str, Any]:
    labels = {"app": "agent"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def test_what_a_budget_holds_is_left_without_a_deadline_and_the_drain_continues_later(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a")
    world.pod("free", labels={"app": "other"})
    world.budget(0)
    run = Drain(world, {"nodes": ["n1"]}, drain={"timeout": "2s"})
    with world.kubelets(), pytest.raises(DeadlinePassed, match=r"default/a on n1.*web-pdb"):
        run.until("drain")
    assert run.outcomes() == {"a": "Left", "free": "Evicted"}
    assert run.report()["nodes"][0]["outcome"] == "Held"
    assert claims(world) == {"claim-n1"}
    # A person relaxes the budget and clears the task.
    world.allow(1)
    run.ti.max_tries += 1
    with world.kubelets():
        run.task("drain")
    assert run.outcomes() == {"a": "Evicted"}


def test_with_the_policy_delete_what_a_budget_holds_goes_when_the_time_is_up(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a")
    world.budget(0)
    run = Drain(world, {"nodes": ["n1"]}, drain={"timeout": "2s", "whenTimeExpires": "delete"})
    with world.kubelets():
        run.until("drain")
    assert run.outcomes() == {"a": "Forced"}


def test_with_a_deadline_what_a_budget_holds_is_deleted_in_time_for_its_grace(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_fleet.core.drain.actions import Limits
    from gpu_fleet.core.interruptions.request import DrainRequest

    join(world, "n1", "i-0000000a")
    world.pod("a", grace=2)
    world.budget(0)
    # A minute is the shortest deadline of the form; the test has less patience.
    monkeypatch.setattr(DrainRequest, "limits", lambda self, spec, began: Limits(deadline=began + 6.0, margin=1.0))
    run = Drain(world, {"nodes": ["n1"], "deadline": 1})
    with world.kubelets(takes=1.0):
        run.until("drain")
    (pod,) = run.report()["pods"]
    assert (pod["outcome"], "web-pdb" in pod["words"]) == ("Forced", True)
    assert pod["gone_at"] <= run.report()["nodes"][0]["deadline"]


def test_nodes_that_stay_belong_to_a_person_afterwards(world: World) -> None:
    join(world, "n1", "i-0000000a")
    run = Drain(world, {"nodes": ["i-0000000a"], "remove": False})
    run.until("drain")
    assert run.task("remove") == {"n1": "it stays cordoned"}
    found = annotations_of(world, "n1")
    assert is_cordoned(world, "n1")
    assert (found.get("gpu-fleet.io/cordoned-by"), found["gpu-fleet.io/drained-by"]) == (None, RUN)
    assert claims(world) == {"claim-n1"}


def test_a_node_that_cannot_be_removed_fails_the_task_after_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_fleet.core.errors import Forbidden, TransientError

    join(world, "n1", "i-0000000a")
    join(world, "n2", "i-0000000b")
    run = Drain(world, {"pools": ["shared-a10g"]})
    run.until("drain")

    def remove(kube: Any, spec: Any, node: Any) -> str:
        if node.name == "n1":
            raise Forbidden("not allowed")
        return removal.remove_node(kube, spec, node)

    monkeypatch.setattr(manual_drain, "remove_node", remove)
    with pytest.raises(TransientError, match="n1: not allowed") as error:
        run.task("remove")
    assert error.value.reason == "NotRemoved"
    assert claims(world) == {"claim-n1"}
    said = {node["node"]: node["removed"] for node in run.report("remove")["nodes"]}
    assert said == {"n1": "could not be removed: not allowed", "n2": "NodeClaim claim-n2 deleted"}


# --- the plan and the answer -----------------------------------------------------------------------------------------
def test_a_dry_run_shows_the_plan_as_the_report_and_changes_nothing(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a")
    world.pod("alone", owner=None)
    run = Drain(world, {"nodes": ["n1"], "dryRun": True})
    found = run.task("plan")
    assert "`default/alone`" in found["markdown"]
    report = run.report("plan")
    assert report["headline"].startswith("Plan: 1 node of shared-a10g drained, 1 pod evicted; refused")
    assert {pod["name"]: (pod["outcome"], pod["rule"]) for pod in report["pods"]} == {
        "a": ("Planned", "Evictable"),
        "alone": ("Planned", "Unreplicated"),
    }
    with pytest.raises(AirflowSkipException, match="only the plan"):
        run.task("approve")
    assert not is_cordoned(world, "n1")
    assert world.get("a") is not None


@pytest.mark.parametrize(
    ("gpus", "params", "asks"),
    [(0, {}, False), (1, {}, True), (1, {"askFirst": False}, False)],
    ids=["no GPU pod", "a GPU pod", "a GPU pod and askFirst: false"],
)
def test_a_person_is_asked_only_if_users_gpu_pods_are_hit(
    world: World, gpus: int, params: dict[str, Any], asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(world, "n1", "i-0000000a")
    _pod_with_gpus(world, gpus)
    run = Drain(world, {"nodes": ["n1"], **params})
    run.task("plan")
    asked: list[str] = []

    def execute(self: Any, context: Any) -> Any:
        asked.append(self.task_id)
        raise TaskAwaitingInput(method_name="execute_complete", timeout=None)

    monkeypatch.setattr("airflow.providers.standard.operators.hitl.HITLOperator.execute", execute)
    if asks:
        with pytest.raises(TaskAwaitingInput):
            run.task("approve")
        assert asked == ["approve"]
    else:
        answer = run.task("approve")
        assert answer_to(run.ti.left["plan", "return_value"], answer) is Answer.APPROVED
        assert asked == []


def _pod_with_gpus(world: World, gpus: int, name: str = "train", workload: str = "job") -> None:
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}, "requests": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    world.kube.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "default",
                "ownerReferences": [
                    {"apiVersion": "batch/v1", "kind": "Job", "name": workload, "uid": workload, "controller": True}
                ],
            },
            "spec": {
                "nodeName": "n1",
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "x", "resources": resources}],
            },
        }
    )


def test_pods_that_came_after_the_approval_are_not_evicted(world: World) -> None:
    join(world, "n1", "i-0000000a")
    _pod_with_gpus(world, 1)
    run = Drain(world, {"nodes": ["n1"]})
    plan = run.task("plan")
    run.ti.left["approve", "return_value"] = {"chosen_options": ["Approve"], "about": plan["id"]}
    _pod_with_gpus(world, 1, "train-again")  # of the job that was approved
    run.task("plan_again")
    _pod_with_gpus(world, 1, "late", "another-job")
    with pytest.raises(PermanentError, match="also evict default/late") as error:
        run.task("plan_again")
    assert error.value.reason == "PlanGrew"
    run.task("cordon")
    with pytest.raises(PermanentError, match="also evict default/late"):
        run.task("drain")
    assert world.get("train") is not None
    # Nothing was evicted: the node goes back into service.
    run.ti.task_states["remove"] = "upstream_failed"
    assert run.task("undo_cordons")["uncordoned"] == ["n1"]
    assert not is_cordoned(world, "n1")


def test_a_pod_that_nothing_recreates_refuses_the_drain_before_anything_is_cordoned(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("alone", owner=None)
    with pytest.raises(PermanentError, match="default/alone on n1") as error:
        Drain(world, {"nodes": ["n1"]}).task("plan")
    assert error.value.reason == "DrainRefused"
    run = Drain(world, {"nodes": ["n1"], "evictBarePods": True})
    with world.kubelets():
        run.until("drain")
    assert run.outcomes() == {"alone": "Evicted"}


def test_an_unknown_node_is_an_error_and_an_instance_that_is_gone_is_nothing_to_do(world: World) -> None:
    join(world, "n1", "i-0000000a")
    with pytest.raises(SpecError, match="n9"):
        Drain(world, {"nodes": ["n9"]}).task("plan")
    run = Drain(world, {"nodes": ["i-0000000f"]})
    with pytest.raises(AirflowSkipException, match="Nothing to drain: i-0000000f"):
        run.task("plan")
    assert run.report("plan")["headline"].startswith("Nothing to drain")


def test_nodes_of_others_are_not_drained(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.kube.patch(ObjectRef(NODE, "n1"), {"metadata": {"labels": {"karpenter.sh/nodepool": "of-others"}}})
    with pytest.raises(SpecError, match="n1: no such node"):
        Drain(world, {"nodes": ["n1"]}).task("plan")


def test_without_room_for_a_node_that_comes_first_nothing_is_changed(world: World) -> None:
    for name in ("n1", "n2", "n3"):
        join(world, name, f"i-0000000{name[1]}")
    with pytest.raises(PermanentError, match=r"raise limits\.nodes") as error:
        Drain(world, {"nodes": ["n1"], "replaceFirst": True}).task("plan")
    assert error.value.reason == "NoRoomToReplace"


def test_the_plan_says_how_many_nodes_come_first(world: World) -> None:
    join(world, "n1", "i-0000000a")
    join(world, "n2", "i-0000000b")
    run = Drain(world, {"nodes": ["n1"], "replaceFirst": True})
    assert run.until("plan_again")["replace"] == {"shared-a10g": {"nodes": ["n1"], "surge": 0}}
    assert Drain(world, {"nodes": ["n1"]}).task("plan")["replace"] == {}


# --- cordons ---------------------------------------------------------------------------------------------------------
def test_a_cordon_of_a_person_or_an_interruption_stays_theirs(world: World) -> None:
    for name, by in (("n1", None), ("n2", "interruption/e1"), ("n3", "gpu_drain.demo/dead")):
        join(world, name, f"i-0000000{name[1]}")
        annotations = {"gpu-fleet.io/cordoned-by": by} if by else {}
        world.kube.patch(
            ObjectRef(NODE, name), {"metadata": {"annotations": annotations}, "spec": {"unschedulable": True}}
        )
    run = Drain(world, {"pools": ["shared-a10g"]})
    assert run.until("cordon") == {"cordoned": ["n3"], "already": ["n1", "n2"]}
    assert annotations_of(world, "n3")["gpu-fleet.io/cordoned-by"] == RUN
    run.ti.task_states["remove"] = "skipped"
    assert run.task("undo_cordons")["uncordoned"] == ["n3"]
    assert [is_cordoned(world, name) for name in ("n1", "n2", "n3")] == [True, True, False]


@pytest.mark.parametrize(
    ("evicting", "remove", "uncordoned"),
    [
        (False, "upstream_failed", ["n1"]),
        (True, "upstream_failed", []),
        (True, "failed", []),
        (True, "skipped", ["n1"]),
        (False, "skipped", ["n1"]),
    ],
)
def test_cordons_are_taken_back_before_the_first_eviction_and_when_a_person_ends_the_run(
    world: World, evicting: bool, remove: str, uncordoned: list[str]
) -> None:
    join(world, "n1", "i-0000000a")
    run = Drain(world, {"nodes": ["n1"]})
    run.until("cordon")
    if evicting:
        run.ti.left["drain", EVICTING] = True
    run.ti.task_states["remove"] = remove
    assert run.task("undo_cordons")["uncordoned"] == uncordoned
    assert is_cordoned(world, "n1") is not bool(uncordoned)


def test_a_node_that_is_interrupted_meanwhile_stays_cordoned(world: World) -> None:
    join(world, "n1", "i-0000000a")
    run = Drain(world, {"nodes": ["n1"]})
    run.until("cordon")
    body = {"metadata": {"annotations": {"gpu-fleet.io/cordoned-by": "interruption/e1"}}}
    world.kube.patch(ObjectRef(NODE, "n1"), body)
    run.ti.task_states["remove"] = "skipped"
    assert run.task("undo_cordons")["uncordoned"] == []
    assert is_cordoned(world, "n1")


def test_a_later_node_of_the_same_name_is_left_alone(world: World) -> None:
    join(world, "n1", "i-0000000a")
    run = Drain(world, {"nodes": ["n1"]})
    run.until("plan_again")
    world.kube.delete(ObjectRef(NODE, "n1"))
    world.kube.delete(ObjectRef(NODE_CLAIM, "claim-n1"))
    join(world, "n1", "i-0000000b")
    world.pod("a")
    run.tasks("cordon", "drain", "remove")
    assert not is_cordoned(world, "n1")
    assert world.get("a") is not None
    assert claims(world) == {"claim-n1"}
    assert run.ti.left["remove", "return_value"] == {"n1": "it is gone"}


def test_a_node_that_karpenter_removes_after_the_plan_is_named_and_counted_as_lost(world: World) -> None:
    join(world, "n1", "i-0000000a")
    join(world, "n2", "i-0000000b")
    run = Drain(world, {"nodes": ["n1", "n2"]})
    run.until("cordon")
    world.kube.delete(ObjectRef(NODE, "n1"))
    world.kube.delete(ObjectRef(NODE_CLAIM, "claim-n1"))
    with world.kubelets():
        result = run.task("drain")
    assert result["pools"] == {"shared-a10g": ["n1", "n2"]}
    assert "somebody else has removed it" in run.report()["unknown"]["n1"]
    assert [node["node"] for node in run.report()["nodes"]] == ["n2"]


# --- deaths ----------------------------------------------------------------------------------------------------------
def test_a_try_that_follows_a_killed_one_keeps_the_deadline_and_what_was_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a")
    run = Drain(world, {"nodes": ["n1"]})
    run.until("cordon")

    def killed(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(DrainByHandOperator, "_report", killed)
    with world.kubelets(), pytest.raises(SystemExit):
        run.task("drain")
    monkeypatch.undo()
    began = run.stores["drain"]["began"]["at"]
    # Airflow clears a task's XComs when it starts again.
    run.ti.left = {key: value for key, value in run.ti.left.items() if key[0] != "drain"}
    run.task("drain")
    assert run.ti.left["drain", EVICTING] is True
    assert run.outcomes() == {"a": "Evicted"}
    assert run.report()["began"] == began


def test_the_eviction_is_on_record_before_it_is_requested(world: World) -> None:
    join(world, "n1", "i-0000000a")
    world.pod("a")
    run = Drain(world, {"nodes": ["n1"]})
    run.until("cordon")
    known: list[bool] = []
    evict = world.kube.__class__.evict

    def spy(self: Any, *args: Any, **options: Any) -> Any:
        known.append(bool(run.ti.left.get(("drain", EVICTING))))
        return evict(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch, world.kubelets():
        patch.setattr(world.kube.__class__, "evict", spy)
        run.task("drain")
    assert known
    assert all(known)
    assert threading.active_count() < 50


# --- drains that an interruption plans -------------------------------------------------------------------------------
AT = 1_795_608_000.0  # 2026-11-25, a Wednesday, 12:00 UTC


def start(when: str, *nodes: PlannedNode, **interruptions: Any) -> DagRunTriggerException:
    spec = spec_at("/none", **_merged({"interruptions": interruptions}))
    ti = RunInstance(dag_id="gpu_spot_drain.demo", run_id="r1", spec=spec)
    ti.left["drain", PLANNED] = {"at": AT, "nodes": [node.to_json() for node in nodes]}
    task = StartDrainOperator(task_id="start", trigger_dag_id=DAG_ID, when=when)
    with pytest.raises(DagRunTriggerException) as error:
        task.execute({"ti": ti})
    return error.value


REBALANCE = PlannedNode("n1", "i-0000000a", Kind.REBALANCE)
CHANGE = PlannedNode("n2", "i-0000000b", Kind.SCHEDULED, AT + 14 * 86400)
WINDOW = {"maintenance": {"schedule": "0 2 * * 6", "duration": "2h"}}


def test_a_rebalance_recommendation_starts_a_run_at_once_that_replaces_first_and_asks_nobody() -> None:
    found = start("now", REBALANCE, CHANGE, **WINDOW)
    assert (found.trigger_dag_id, found.dag_run_id, found.run_after) == (DAG_ID, "planned__r1", None)
    assert found.skip_when_already_exists
    assert found.conf == {
        "nodes": ["i-0000000a"],
        "replaceFirst": True,
        "askFirst": False,
        "reason": "planned by gpu_spot_drain.demo: RebalanceRecommendation",
    }


def test_a_scheduled_change_waits_for_the_window() -> None:
    found = start("window", REBALANCE, CHANGE, **WINDOW)
    assert found.dag_run_id == "planned_window__r1"
    assert found.run_after.isoformat() == "2026-11-28T02:00:00+00:00"
    assert found.conf["nodes"] == ["i-0000000b"]


def test_without_a_window_all_begin_at_once() -> None:
    assert start("now", REBALANCE, CHANGE).conf["nodes"] == ["i-0000000a", "i-0000000b"]


@pytest.mark.parametrize(("when", "nodes"), [("now", ()), ("window", (REBALANCE,)), ("now", (CHANGE,))])
def test_a_task_with_nothing_to_start_is_skipped(when: str, nodes: tuple[PlannedNode, ...]) -> None:
    spec = spec_at("/none", **_merged({"interruptions": WINDOW}))
    ti = RunInstance(dag_id="gpu_spot_drain.demo", run_id="r1", spec=spec)
    ti.left["drain", PLANNED] = {"at": AT, "nodes": [node.to_json() for node in nodes]}
    with pytest.raises(AirflowSkipException):
        StartDrainOperator(task_id="start", trigger_dag_id=DAG_ID, when=when).execute({"ti": ti})


def test_the_conf_of_a_planned_run_has_only_params_of_the_dag() -> None:
    from tests.dags.conftest import ROOT

    text = (ROOT / "dags" / "gpu_drain.py").read_text()
    assert all(f'"{key}": Param(' in text for key in start("now", REBALANCE).conf)
