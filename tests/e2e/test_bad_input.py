"""What can be wrong around a run: each gives one message with the object and the remedy, at the earliest task, soon.

The cases that only need a cluster file of their own are started together, as Airflow would run them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.fleet import CLUSTER, LIFECYCLE, Fleet, Json, Run, changes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

#: These run whatever happened, and have nothing to give back.
RELEASES = {"release_turn", "teardown.release_turn"}
PREFLIGHT = {
    "preflight.check_tools",
    "preflight.check_aws",
    "preflight.check_prerequisites",
    "preflight.check_neighbours",
    "preflight.plan_changes",
    "preflight.cluster_active",
}
#: Runs whatever happened, and undoes what was frozen: nothing here.
UNDOES = {"teardown.undo_freeze"}


CHECK_AWS, ACTIVE = "preflight.check_aws", "preflight.cluster_active"


@dataclass(frozen=True)
class Case:
    """A cluster file that cannot work.

    :ivar spec: what its file says instead of the demo cluster's.
    :ivar failed: the tasks that fail; nothing after them runs.
    :ivar says: what the log of each of them names: the object and the remedy.
    :ivar full: only in make test-full.
    """

    name: str
    spec: Json
    failed: frozenset[str]
    says: tuple[str, ...]
    full: bool = False


CASES = [
    Case(
        "noconnection",
        {"aws": {"connection": "aws_missing"}},
        frozenset({CHECK_AWS, ACTIVE}),
        ("aws.connection: there is no Airflow connection 'aws_missing'", "create a connection of type 'aws'"),
    ),
    Case(
        "badkey",
        {"aws": {"connection": "aws_badkey"}},
        frozenset({CHECK_AWS, ACTIVE}),
        ("Airflow connection 'aws_badkey'", "AWS does not accept the credentials"),
        full=True,
    ),
    Case(
        # Of the right form, so that only AWS can tell.
        "noregion",
        {"aws": {"region": "us-west-9"}},
        frozenset({CHECK_AWS, ACTIVE}),
        ("aws.region", "valid region", "write a region of AWS"),
    ),
    Case(
        "malformed",
        {"aws": {"region": "mars"}},
        frozenset({"invalid_spec"}),
        ("aws.region", "'mars'"),
    ),
    Case(
        "otherregion",
        {"aws": {"region": "eu-central-1"}},
        frozenset({ACTIVE}),
        ("there is no EKS cluster 'demo-gpu'", "check cluster.name, aws.region"),
        full=True,
    ),
    Case(
        "absent",
        {"cluster": {"name": "no-such-gpu"}},
        frozenset({ACTIVE}),
        ("there is no EKS cluster 'no-such-gpu'", "check cluster.name"),
    ),
]


def failed_early(run: Run, failed: frozenset[str] | set[str]) -> None:
    """The run failed at these tasks, at their first try, and nothing but its end came after them."""
    assert run.state == "failed"
    assert set(run.failed) == failed
    assert {task_id: run.tasks[task_id]["try_number"] for task_id in failed} == dict.fromkeys(failed, 1)
    after = set(run.in_state("success")) - PREFLIGHT - {"freeze_spec", "reached_end", *RELEASES, *UNDOES}
    assert after == set(), f"went on with {sorted(after)}"
    for task_id in RELEASES & set(run.tasks):
        assert run.xcom(task_id) == "NeverAsked"


class Together:
    """The cases of this session run side by side."""

    def __init__(self, fleet: Fleet, cases: list[Case]) -> None:
        self.before = fleet.snapshot()
        for case in cases:
            fleet.write_cluster(case.name, case.spec)
        started = {case.name: fleet.start(f"gpu_lifecycle.{case.name}") for case in cases}
        self.runs = {name: fleet.follow(f"gpu_lifecycle.{name}", run_id) for name, run_id in started.items()}
        self.logs = {
            case.name: {task_id: self.runs[case.name].log(task_id) for task_id in self.runs[case.name].failed}
            for case in cases
        }
        self.after = fleet.snapshot()


@pytest.fixture(scope="module")
def bad_key(the_fleet: Fleet) -> Iterator[None]:
    """A connection whose secret key is not the account's."""
    account = the_fleet.environment
    body = {
        "connection_id": "aws_badkey",
        "conn_type": "aws",
        "login": account["AWS_ACCESS_KEY_ID"],
        "password": "not-the-secret-key-of-this-account",
        "extra": f'{{"endpoint_url": "{account["AWS_ENDPOINT_URL"]}"}}',
    }
    the_fleet.api.call("POST", "/connections", json=body)
    yield
    the_fleet.api.call("DELETE", "/connections/aws_badkey")


@pytest.fixture(scope="module")
def together(the_fleet: Fleet, bad_key: None, request: pytest.FixtureRequest) -> Together:
    the_fleet.repair()
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    selected = [spec.params["case"] for spec in specs if spec is not None and "case" in spec.params]
    try:
        return Together(the_fleet, [case for case in CASES if case in selected])
    finally:
        for case in CASES:
            (the_fleet.clusters_dir / f"{case.name}.yaml").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.full] if case.full else []) for case in CASES]
)
def test_wrong_cluster_file_fails_in_preflight(together: Together, fleet: Fleet, case: Case) -> None:
    run = together.runs[case.name]
    fleet.runs.append((run.dag_id, run.run_id))
    failed_early(run, case.failed)
    for task_id in case.failed:
        log = together.logs[case.name][task_id]
        for text in case.says:
            assert text in log, f"{task_id} does not say {text!r}"


def test_nothing_was_changed_by_any_of_them(together: Together) -> None:
    assert changes(together.before, together.after) == {}


# --- the tools -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, ("there is no helm", "install helm 4.x or set HELM_BIN")),
        pytest.param("echo v2.17.0", ("2.17", "HELM_BIN"), marks=pytest.mark.full),
        pytest.param("exit 0", ("does not say its version", "HELM_BIN"), marks=pytest.mark.full),
    ],
    ids=["missing", "too old", "silent"],
)
def test_unusable_helm_fails_in_preflight(fleet: Fleet, script: str | None, says: tuple[str, ...]) -> None:
    before = fleet.snapshot()
    with fleet.helm_replaced_by(script):
        run = fleet.lifecycle()
    failed_early(run, {"preflight.check_tools"})
    log = run.log("preflight.check_tools")
    for text in says:
        assert text in log
    assert changes(before, fleet.snapshot()) == {}


# --- the world around ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("FAILED", "EKS cluster demo-gpu is FAILED; an ACTIVE cluster is needed: repair it or name another one"),
        pytest.param("CREATING", "still waiting for cluster_active at its deadline", marks=pytest.mark.full),
    ],
)
def test_cluster_that_is_not_active_fails_in_preflight(fleet: Fleet, status: str, says: str) -> None:
    before = fleet.snapshot()
    fleet.write_cluster(CLUSTER, {"deadlines": {"clusterActive": "5s"}})
    with fleet.fault("eks-status", {"status": status}):
        run = fleet.lifecycle()
    fleet.write_cluster()
    failed_early(run, {ACTIVE})
    assert says in run.log(ACTIVE)
    assert changes(before, fleet.snapshot()) == {}


@pytest.mark.full
def test_cluster_of_another_version_fails_in_preflight(fleet: Fleet) -> None:
    fleet.write_cluster(CLUSTER, {"cluster": {"version": "1.34"}})
    run = fleet.lifecycle()
    fleet.write_cluster()
    failed_early(run, {ACTIVE})
    assert "runs Kubernetes 1.35, the spec says 1.34; correct cluster.version" in run.log(ACTIVE)


@pytest.mark.full
def test_unreachable_api_server_fails_the_first_tasks_that_need_it(empty: Fleet) -> None:
    with empty.part_stopped("apiserver"):
        run = empty.lifecycle()
    assert run.state == "failed"
    assert sorted(run.failed) == ["preflight.check_neighbours", "preflight.plan_changes"]
    for task_id in run.failed:
        log = run.log(task_id)
        assert f"cannot connect to {empty.sandbox.state['kubernetes']['url']} (EKS cluster 'demo-gpu'" in log
        assert "check the network" in log
    # Both turns say that the run never asked for one: that takes no API server.
    quiet = {*PREFLIGHT, "freeze_spec", "release_turn", "teardown.release_turn", "reached_end", *UNDOES}
    assert set(run.in_state("success")) <= quiet
    assert empty.leftovers() == []


@pytest.mark.full
def test_unreachable_chart_repository_is_named_and_a_rerun_finishes_what_was_begun(empty: Fleet) -> None:
    empty.forget_charts()
    with empty.part_stopped("charts"):
        run = empty.run(LIFECYCLE, {"until": "validated"})
    assert run.state == "failed"
    assert set(run.failed) == {"provision.install_karpenter_crd", "rollout.install_device_plugin"}
    for task_id, chart in (
        ("provision.install_karpenter_crd", "karpenter-crd"),
        ("rollout.install_device_plugin", "nvidia-device-plugin"),
    ):
        log = run.log(task_id)
        assert "pull of chart" in log
        assert f"{chart} " in log
        assert empty.sandbox.state["charts"]["url"].split("/")[2] in log
        assert "set a mirror in GPU_FLEET_CHART_MIRRORS" in log
    assert empty.revisions() == {}
    assert empty.instances() == {}
    assert empty.turn_holder() == {}
    again = empty.lifecycle().succeeded()
    assert again.failed == []
