"""The whole life of the capacity: drained and removed; in parts; failed on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo import workload
from demo.api import ApiError
from tests.e2e.fleet import (
    CLUSTER,
    GPU,
    LIFECYCLE,
    POOLS,
    SHARED,
    STANDING,
    TEARDOWN,
    WHOLE,
    Fleet,
    Json,
    Run,
    changes,
    cluster_spec,
    pool_changes,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

RELEASES = {"karpenter-crd", "karpenter", "nvidia-device-plugin"}


# --- all the way ------------------------------------------------------------------------------------------------------
class Whole:
    """One run ``until: torn_down``, and what was seen just before its approval."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.before: Json = {}
        self.job = False
        self.run: Run = fleet.run(
            LIFECYCLE, {"until": "torn_down"}, before_answer=self.look, on_tick=self.start_job_once_validated
        )
        self.left = fleet.leftovers()
        self.users_pods = fleet.kubectl.get("pods", "-n", workload.NAMESPACE)
        fleet.end_users_job()

    def start_job_once_validated(self, tasks: dict[str, Json]) -> None:
        """Before the plan: what it does not name is not torn down under its approval."""
        if not self.job and tasks[f"validation.pool_{SHARED}.sharing"]["state"] == "success":
            self.job = True
            workload.create(self.fleet.kubectl, SHARED)

    def look(self) -> None:
        fleet = self.fleet
        controller_revisions = fleet.kubectl.get("controllerrevisions", "-n", "nvidia-device-plugin")
        self.before = {
            "job": fleet.users_job(SHARED),
            "releases": fleet.releases(),
            "allocatable": {pool: sorted(counts) for pool, counts in fleet.allocatable().items()},
            "instances": set(fleet.instances()),
            "turn": fleet.turn_holder(),
            "runtime_class": fleet.kubectl.get("runtimeclass", "nvidia")[0],
            "plugin_revisions": controller_revisions,
            "plugin_events": [
                event
                for event in fleet.kubectl.get("events", "-n", "nvidia-device-plugin")
                if event.get("reason") == "FailedCreate"
            ],
            "users_pods": {pod["metadata"]["name"] for pod in fleet.kubectl.get("pods", "-n", workload.NAMESPACE)},
            "waits": {wait["label"]: wait["ended"] for wait in fleet.sandbox.waits()},
        }


@pytest.fixture(scope="module")
def whole(the_fleet: Fleet) -> Whole:
    the_fleet.reset()
    the_fleet.runs.clear()
    return Whole(the_fleet)


@pytest.mark.real_api
def test_whole_run_succeeds(whole: Whole, fleet: Fleet) -> None:
    fleet.runs.append((whole.run.dag_id, whole.run.run_id))
    whole.run.succeeded()
    # remediate has nothing to do when all went well; every other task ran.
    assert whole.run.in_state("skipped") == ["prove.remediate_device_plugin"]
    assert set(whole.run.states().values()) == {"success", "skipped"}


@pytest.mark.real_api
def test_releases_were_proven_by_the_run(whole: Whole) -> None:
    assert set(whole.before["releases"]) == RELEASES
    for release in whole.before["releases"].values():
        assert (release["status"], release["revision"], release["proven_revision"]) == ("deployed", 1, 1)
        assert release["proven_by"] == f"{LIFECYCLE}/{whole.run.run_id}"


@pytest.mark.real_api
def test_nodes_offered_what_was_promised(whole: Whole) -> None:
    assert whole.before["allocatable"] == STANDING


@pytest.mark.real_api
@pytest.mark.parametrize(("pool", "probe"), [(SHARED, "sharing"), (WHOLE, "exclusive")])
def test_every_node_passed_validation(whole: Whole, pool: str, probe: str) -> None:
    report = whole.run.xcom(f"validation.pool_{pool}.{probe}", "report")
    assert report["outcome"] == "Passed"
    assert len(report["nodes"]) == len(STANDING[pool])
    for node in report["nodes"]:
        assert node["outcome"] == "Passed"
        outcomes = {check["name"]: check["outcome"] for check in node["checks"]}
        # Nothing monitors the hardware here, and no pool shares by MPS. Whole GPUs may be asked for in any number.
        left_out = {"hardware", "mpsDaemon"} | (set() if probe == "sharing" else {"refusal"})
        assert {name for name, outcome in outcomes.items() if outcome == "Skipped"} == left_out
        assert {outcome for name, outcome in outcomes.items() if name not in left_out} == {"Passed"}
        assert {"allocatable", "vectorAdd", "concurrency", "distribution", "physical", "bound"} <= set(outcomes)


@pytest.mark.real_api
@pytest.mark.parametrize("pool", POOLS)
def test_the_stages_of_a_node_are_the_waits_that_were_injected(whole: Whole, pool: str) -> None:
    """Time stamps are whole seconds, and the API server's, the kubelet's and EC2's; never a worker's."""
    told, waits = whole.run.xcom(f"validation.pool_{pool}.publish", "stages"), whole.before["waits"]
    assert len(told["nodes"]) == len(STANDING[pool])
    for node in told["nodes"]:
        name, at, seconds = node["node"], node["at"], node["seconds"]
        assert set(at) == {"pending", "claimed", "launched", "registered", "ready", "plugin", "proven"}
        assert (node["asked"], node["pod"].partition("-")[0]) == (True, "gpu")  # of gpu-fleet-system
        ended = {
            "registered": waits[f"{node['instance']} joined as {name}"],
            "ready": waits[f"{name} became ready"],
            "plugin": waits[f"GPU of {name} announced"],
        }
        late = {moment: at[moment] - end for moment, end in ended.items()}
        assert {moment: each for moment, each in late.items() if not -1.0 <= each <= 1.0} == {}, name
        assert abs(seconds["ready"] - (int(ended["ready"]) - int(ended["registered"]))) <= 1.0
        assert abs(seconds["plugin"] - (int(ended["plugin"]) - int(ended["ready"]))) <= 1.0
        assert seconds["total"] == pytest.approx(at["proven"] - at["pending"], abs=0.01)
        assert seconds["use"] is None


@pytest.mark.real_api
def test_the_history_of_stages_outlives_the_teardown(whole: Whole) -> None:
    rows = whole.fleet.query(
        "SELECT asset.uri, value FROM asset_state_store JOIN asset ON asset.id = asset_id WHERE key = 'stages'"
    )
    kept = {row["uri"].split("/")[-2]: json.loads(row["value"])["nodes"] for row in rows}
    for pool in POOLS:
        mine = [node for node in kept[pool] if node["run"] == f"{LIFECYCLE}/{whole.run.run_id}"]
        assert {node["instance"] for node in mine} <= whole.before["instances"]
        assert len(mine) == len(STANDING[pool])


@pytest.mark.real_api
def test_runtime_class_came_before_the_plugin(whole: Whole) -> None:
    """By the server's own order of writes: a DaemonSet's revision is written before its first pod, and neither it nor
    the RuntimeClass is written to again."""
    revisions = whole.before["plugin_revisions"]
    assert any(each["metadata"]["name"].startswith("nvidia-device-plugin-") for each in revisions)
    runtime_class = int(whole.before["runtime_class"]["metadata"]["resourceVersion"])
    assert runtime_class < min(int(each["metadata"]["resourceVersion"]) for each in revisions)
    assert whole.before["plugin_events"] == []
    assert whole.run.span("rollout.apply_runtime_class")[1] <= whole.run.span("rollout.install_device_plugin")[0]


@pytest.mark.real_api
def test_turn_was_free_while_a_person_was_asked(whole: Whole) -> None:
    assert whole.before["turn"] == {}


@pytest.mark.real_api
def test_drain_evicted_the_users_job_and_says_so(whole: Whole) -> None:
    report = whole.run.xcom(f"teardown.drain_{SHARED}")
    assert sorted(report["nodes"]) == sorted({*report["nodes"], *whole.before["job"]})
    evicted = {row["pod"].split("/")[-1] for row in report["pods"] if row["outcome"] == "Evicted"}
    assert evicted == whole.before["users_pods"]
    # What replaced them found no node, and bought none: the pools were frozen first.
    assert whole.users_pods
    assert not {pod["metadata"]["name"] for pod in whole.users_pods} & whole.before["users_pods"]
    assert all(not pod["spec"].get("nodeName") for pod in whole.users_pods)


@pytest.mark.real_api
def test_nothing_is_left(whole: Whole) -> None:
    check = whole.run.xcom("teardown.leak_check")
    assert check["leaks"] == []
    assert check["unchecked"] == []
    assert whole.left == []
    assert len(whole.before["instances"]) == 3
    assert whole.fleet.kubectl.get("nodes", "-l", GPU + ".present") == []


@pytest.mark.real_api
def test_plan_was_shown_with_its_cost(whole: Whole) -> None:
    plan = whole.run.xcom("teardown.plan_again")["plan"]
    assert {row["id"] for row in plan["instances"]} == whole.before["instances"]
    assert plan["usdPerHour"] > 20
    assert "AWS Price List API" in plan["prices"]
    assert "Spot prices of" in plan["prices"]


# --- in parts, and two at once ----------------------------------------------------------------------------------------
def test_one_pool_alone_and_a_teardown_that_waits_for_its_turn_and_then_finds_more(empty: Fleet) -> None:
    empty.api.wait_for_dag(TEARDOWN)
    seen: set[str] = set()
    # Planned first: once Karpenter is being installed, a plan waits until it serves, and sees what it has launched.
    teardown = empty.start(TEARDOWN)
    empty.wait_for_task(TEARDOWN, teardown, "teardown.approve", "awaiting_input")
    lifecycle = empty.start(LIFECYCLE, {"until": "validated", "pools": [SHARED]})
    empty.wait_for_task(LIFECYCLE, lifecycle, "preflight.acquire_turn", "success")
    empty.approve(TEARDOWN, teardown)
    empty.wait_for_task(TEARDOWN, teardown, "teardown.acquire_turn", "deferred")

    def waiting() -> Any:
        return empty.api.xcom(TEARDOWN, teardown, "teardown.acquire_turn", "waiting_for")

    reason = until("what the teardown waits for", waiting)
    assert f"{LIFECYCLE}/{lifecycle}" in reason["message"]
    assert empty.turn_holder()["run_id"] == lifecycle

    def look(_: dict[str, Json]) -> None:
        seen.update(i["InstanceType"] for i in empty.instances().values())

    first = empty.follow(LIFECYCLE, lifecycle, on_tick=look).succeeded()
    second = empty.follow(TEARDOWN, teardown)
    assert second.span("teardown.acquire_turn")[1] >= first.span("release_turn")[1] - 1

    assert seen == {"g5.xlarge"}
    states = first.states()
    others = [task_id for task_id in states if f"pool_{WHOLE}." in task_id and not task_id.startswith("provision.")]
    assert f"capacity.pool_{WHOLE}.await_capacity" in others
    assert {states[task_id] for task_id in others} == {"skipped"}
    assert states[f"validation.pool_{SHARED}.sharing"] == "success"

    # What was approved while nothing was there yet does not cover what was built meanwhile: nothing is removed.
    assert second.failed[0] == "teardown.plan_again"
    refusal = second.log("teardown.plan_again")
    for instance_id in empty.instances():
        assert instance_id in refusal
    assert "approve the new plan" in refusal
    assert second.states()["teardown.freeze_pools"] == "upstream_failed"
    assert len(empty.instances()) == 2
    assert empty.turn_holder() == {}
    empty.teardown().succeeded()
    assert empty.leftovers() == []


# --- growth -----------------------------------------------------------------------------------------------------------
@pytest.mark.full
def test_a_pool_grows_by_the_node_that_is_missing_and_keeps_the_one_that_stands(empty: Fleet) -> None:
    empty.write_spec(pool_changes(cluster_spec(), SHARED, {"wantedNodes": 1}))
    empty.lifecycle(pools=[SHARED]).succeeded()
    first = set(empty.instances())
    assert len(first) == 1

    empty.write_spec(pool_changes(cluster_spec(), SHARED, {"wantedNodes": 2}))
    run = empty.lifecycle(pools=[SHARED]).succeeded()
    asked = run.xcom(f"capacity.pool_{SHARED}.request_capacity")
    assert (asked["standing"], len(asked["created"])) == (1, 1)
    assert empty.allocatable() == {SHARED: STANDING[SHARED]}
    assert len(empty.instances()) == len(empty.node_claims()) == 2
    assert first < set(empty.instances())
    # What kept the placeholder away from the first node went with it.
    assert all("gpu-fleet.io/standing" not in node["metadata"]["labels"] for node in empty.nodes())
    assert empty.kubectl.get("pods", "-n", "gpu-fleet-system") == []


# --- Params -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({"pools": ["no-such-pool"]}, "no-such-pool"),
        ({"pools": SHARED}, "array"),
        ({"until": "tomorrow"}, "tomorrow"),
    ],
    ids=["unknown pool", "no list", "unknown goal"],
)
def test_conf_that_fails_the_schema_is_refused_at_once(fleet: Fleet, conf: Json, named: str) -> None:
    fleet.api.wait_for_dag(LIFECYCLE)
    with pytest.raises(ApiError, match=named) as refusal:
        fleet.api.trigger(LIFECYCLE, conf)
    assert refusal.value.status == 400


def test_misspelt_param_fails_the_first_task_and_changes_nothing(fleet: Fleet) -> None:
    before = fleet.snapshot()
    run = fleet.run(LIFECYCLE, {"untill": "torn_down"})
    assert (run.state, run.failed) == ("failed", ["freeze_spec"])
    log = run.log("freeze_spec")
    assert "'untill'" in log
    assert "until, pools" in log or "pools, until" in log
    assert changes(before, fleet.snapshot()) == {}


# --- a failure does not keep the teardown away -----------------------------------------------------------------------
def test_failed_rollout_is_torn_down_and_the_run_stays_failed(empty: Fleet) -> None:
    empty.write_cluster(CLUSTER, {"devicePlugin": {"chart": {"version": "0.99.0"}}})
    run = empty.run(LIFECYCLE, {"until": "torn_down"})
    assert run.state == "failed"
    assert run.failed == ["rollout.install_device_plugin"]
    log = run.log("rollout.install_device_plugin")
    assert "0.99.0" in log
    assert "nvidia-device-plugin" in log
    states = run.states()
    assert states["provision.karpenter_available"] == "success"
    assert states["teardown.leak_check"] == "success"
    assert states["teardown.uninstall_karpenter_crd"] == "success"
    assert states["run_verdict"] == "failed"
    assert "rollout.install_device_plugin" in run.log("run_verdict")
    assert empty.leftovers() == []
