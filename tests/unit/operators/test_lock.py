"""The cluster lock against the sandbox's API server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSkipException, ErrorType, TaskDeferred
from airflow.sdk.execution_time.comms import ErrorResponse

from gpu_fleet.core.errors import ClusterBusy, DeadlinePassed
from gpu_fleet.core.kubernetes.kinds import NAMESPACE, NODE, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, SYSTEM_NAMESPACE
from gpu_fleet.core.lock import LOCK_REF, Holder, read_holder, record
from gpu_fleet.core.verdict import progressing, ready
from gpu_fleet.hooks.kubernetes.client import KubeClient
from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.lock import NEVER_ASKED, SKIPPED, AcquireLockOperator, ReleaseLockOperator
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER
from tests.unit import notifying
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

HERE = "https://airflow.example"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCluster]:
    monkeypatch.setenv("GPU_FLEET_DEPLOYMENT", HERE)
    yield shared
    shared.faults.clear()
    shared.kube.delete(LOCK_REF)


def run(cluster: SandboxCluster, run_id: str = "run_1", states: dict[str, str] | None = None) -> dict[str, Any]:
    ti = TaskInstance(run_id=run_id, spec=spec_at(str(cluster.access.path)))
    ti.run_states = {(ti.dag_id, name): state for name, state in (states or {}).items()}
    return context(ti)


def acquire(task_context: dict[str, Any]) -> Any:
    return AcquireLockOperator(task_id="acquire_turn").execute(task_context)


def release(task_context: dict[str, Any]) -> Any:
    return ReleaseLockOperator(task_id="release_turn").execute(task_context)


def holder(cluster: SandboxCluster) -> Holder | None:
    return read_holder(cluster.kube.get(LOCK_REF))


def held(cluster: SandboxCluster) -> Holder:
    found = holder(cluster)
    assert found is not None
    return found


def test_first_run_makes_the_namespace_and_takes_the_lock(cluster: SandboxCluster) -> None:
    taken = acquire(run(cluster))
    assert (taken["deployment"], taken["dag_id"], taken["run_id"]) == (HERE, "gpu_lifecycle.demo", "run_1")
    assert held(cluster).to_data() == taken


def test_the_same_run_keeps_its_lock_and_its_time(cluster: SandboxCluster) -> None:
    first = acquire(run(cluster))
    version = cluster.kube.get(LOCK_REF)["metadata"]["resourceVersion"]  # type: ignore[index]
    assert acquire(run(cluster)) == first
    assert cluster.kube.get(LOCK_REF)["metadata"]["resourceVersion"] == version  # type: ignore[index]


def test_a_live_holder_is_waited_for_and_named(cluster: SandboxCluster) -> None:
    acquire(run(cluster, "run_1"))
    waiting = run(cluster, "run_2", {"run_1": "running"})
    with pytest.raises(TaskDeferred) as deferred:
        acquire(waiting)
    assert deferred.value.method_name == "go_on"
    assert "run_1" in waiting["ti"].xcoms["waiting_for"]["message"]
    assert held(cluster).run_id == "run_1"


@pytest.mark.parametrize("state", ["success", "failed", None])
def test_the_lock_of_a_run_that_is_over_is_taken_over(cluster: SandboxCluster, state: str | None) -> None:
    acquire(run(cluster, "run_1"))
    acquire(run(cluster, "run_2", {"run_1": state} if state else {}))
    assert held(cluster).run_id == "run_2"


def test_a_holder_that_cannot_be_asked_after_keeps_its_lock(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that names the run, here one with the digits of another status in its id, does not say it is gone."""

    def refuse(self: TaskInstance, dag_id: str, run_id: str) -> Any:
        detail = {"status_code": 500, "message": f"Server error: {run_id}: not_found in the cache"}
        raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))

    holder_id = "manual__2026-11-27T03:40:40.404040+00:00"
    acquire(run(cluster, holder_id))
    monkeypatch.setattr(TaskInstance, "get_dagrun_state", refuse)
    with pytest.raises(AirflowRuntimeError):
        acquire(run(cluster, "run_2"))
    assert held(cluster).run_id == holder_id


def test_another_deployments_lock_is_never_stale(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_FLEET_DEPLOYMENT", "https://elsewhere.example")
    acquire(run(cluster, "run_1"))
    monkeypatch.setenv("GPU_FLEET_DEPLOYMENT", HERE)
    with pytest.raises(TaskDeferred):
        acquire(run(cluster, "run_2", {"run_1": "failed"}))


def test_two_deployments_without_a_name_do_not_take_each_others_lock(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_FLEET_DEPLOYMENT", "airflow")
    acquire(run(cluster, "run_1"))
    waiting = run(cluster, "run_2")  # whose Airflow knows no run_1
    with pytest.raises(TaskDeferred):
        acquire(waiting)
    assert "set GPU_FLEET_DEPLOYMENT" in waiting["ti"].xcoms["waiting_for"]["message"]
    acquire(run(cluster, "run_2", {"run_1": "failed"}))
    assert held(cluster).run_id == "run_2"


def test_an_unreadable_record_is_not_overwritten(cluster: SandboxCluster) -> None:
    acquire(run(cluster))
    foreign = record(None, cluster.kube.get(LOCK_REF))
    cluster.kube.replace({**foreign, "data": {"owner": "somebody"}})
    waiting = run(cluster, "run_2")
    with pytest.raises(TaskDeferred):
        acquire(waiting)
    assert "delete ConfigMap" in waiting["ti"].xcoms["waiting_for"]["message"]


def test_a_run_that_comes_again_skips_a_busy_cluster_and_names_the_holder(cluster: SandboxCluster) -> None:
    acquire(run(cluster, "run_1"))
    busy = run(cluster, "run_2", {"run_1": "running"})
    with pytest.raises(AirflowSkipException, match=r"ClusterBusy: .* is held by .*run_1"):
        AcquireLockOperator(task_id="acquire_turn", if_taken="skip").execute(busy)
    assert busy["ti"].xcoms[SKIPPED]["reason"] == "ClusterBusy"
    assert held(cluster).run_id == "run_1"


RECORD = {"notifier": "tests.unit.notifying.RecordingNotifier", "arguments": {"message": "{{ reason }}: {{ message }}"}}


@pytest.mark.parametrize(
    ("since", "run_type", "told"),
    [
        ("2026-01-01T00:00:00Z", "scheduled", True),
        ("", "scheduled", True),
        ("now", "scheduled", False),
        ("2026-01-01T00:00:00Z", "manual", False),
    ],
    ids=["left behind", "unreadable", "at work", "left behind, by hand"],
)
def test_a_lock_that_keeps_validation_away_for_long_is_told(
    cluster: SandboxCluster, since: str, run_type: str, told: bool
) -> None:
    notifying.CALLS.clear()
    acquire(run(cluster, "run_1"))
    found = cluster.kube.get(LOCK_REF) or {}
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if since == "now" else since
    cluster.kube.replace(record(Holder("elsewhere", "gpu_lifecycle.demo", "theirs", since), found))
    busy = run(cluster, "run_2")
    spec = busy["ti"]._frozen["spec"]
    spec["schedule"], spec["validation"] = "0 4 * * *", {"overdueAfter": "90m", "notify": [RECORD]}
    busy["dag_run"] = SimpleNamespace(run_type=run_type)
    with pytest.raises(AirflowSkipException, match="ClusterBusy"):
        AcquireLockOperator(task_id="acquire_turn", if_taken="skip").execute(busy)
    said = [fields["message"] for _, fields in notifying.CALLS]
    assert len(said) == int(told)
    for message in said:
        assert message.startswith(
            "ValidationOverdue: Revalidation of cluster demo is overdue: the lock of cluster demo"
        )
        assert "theirs of elsewhere" in message
        assert "longer than 90 min" in message


@pytest.mark.parametrize("state", ["success", "failed", None])
def test_a_run_that_skips_takes_over_what_is_over(cluster: SandboxCluster, state: str | None) -> None:
    acquire(run(cluster, "run_1"))
    later = run(cluster, "run_2", {"run_1": state} if state else {})
    AcquireLockOperator(task_id="acquire_turn", if_taken="skip").execute(later)
    assert held(cluster).run_id == "run_2"


def test_a_killed_try_that_had_the_lock_is_not_skipped(cluster: SandboxCluster) -> None:
    mine = run(cluster)
    taken = AcquireLockOperator(task_id="acquire_turn", if_taken="skip").execute(mine)
    assert AcquireLockOperator(task_id="acquire_turn", if_taken="skip").execute(mine) == taken


def test_the_namespace_of_the_lock_is_the_specs(cluster: SandboxCluster) -> None:
    """Labels of its own would be reported as drift, and be changed with the first placeholder."""
    acquire(run(cluster))
    namespace = cluster.kube.get(ObjectRef(NAMESPACE, SYSTEM_NAMESPACE)) or {}
    assert namespace["metadata"]["labels"][LABEL_CLUSTER] == "demo"


def test_waiting_goes_on_with_its_first_deadline_after_a_recheck(cluster: SandboxCluster) -> None:
    acquire(run(cluster, "run_1"))
    waiting = run(cluster, "run_2", {"run_1": "running"})
    with pytest.raises(TaskDeferred) as first:
        acquire(waiting)
    event = {"type": "verdict", "gate": "turn_free", "verdict": ready("Recheck", "ask").to_json()}
    operator = AcquireLockOperator(task_id="acquire_turn")
    with pytest.raises(TaskDeferred) as second:
        operator.go_on(waiting, event, **(first.value.kwargs or {}))
    assert second.value.trigger.deadline == first.value.trigger.deadline

    release(run(cluster, "run_1"))
    taken = AcquireLockOperator(task_id="acquire_turn").go_on(waiting, event, **(second.value.kwargs or {}))
    assert taken["run_id"] == "run_2"


def test_a_retry_waits_for_the_lock_until_the_first_trys_deadline(cluster: SandboxCluster) -> None:
    acquire(run(cluster, "run_1"))
    waiting = run(cluster, "run_2", {"run_1": "running"})
    deadlines = []
    for _ in range(2):
        with pytest.raises(TaskDeferred) as deferred:
            acquire(waiting)
        deadlines.append(deferred.value.trigger.deadline)
    assert deadlines[0] == deadlines[1]


def test_the_deadline_names_the_holder(cluster: SandboxCluster) -> None:
    verdict = progressing("ClusterBusy", "the cluster lock is held by x/run_1")
    event = {"type": "deadline", "gate": "turn_free", "verdict": verdict.to_json()}
    with pytest.raises(DeadlinePassed, match="held by x/run_1"):
        AcquireLockOperator(task_id="acquire_turn").go_on(run(cluster), event, started=0.0)


def test_only_the_own_lock_is_released(cluster: SandboxCluster) -> None:
    acquire(run(cluster, "run_1"))
    assert release(run(cluster, "run_2")) == "HeldHere"
    assert held(cluster).run_id == "run_1"
    assert release(run(cluster, "run_1")) == "Ours"
    assert holder(cluster) is None
    assert release(run(cluster, "run_1")) == "Free"


def two_phases() -> dict[str, ReleaseLockOperator]:
    """As in the lifecycle: the lock is taken and released, then once more after an approval."""
    with DAG("gpu_lifecycle.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        chain = [
            AcquireLockOperator(task_id="acquire"),
            ReleaseLockOperator(task_id="release"),
            AcquireLockOperator(task_id="acquire_again"),
            ReleaseLockOperator(task_id="release_again"),
        ]
        for before, after in pairwise(chain):
            before >> after
    return {"release": chain[1], "release_again": chain[3]}


@pytest.mark.parametrize(
    ("task_id", "states", "looks"),
    [
        ("release", {"acquire": "upstream_failed"}, False),
        ("release", {"acquire": None}, False),
        ("release", {"acquire": "failed"}, True),
        ("release", {"acquire": "success"}, True),
        ("release", {}, True),
        # What the first phase took, its own release gave back.
        ("release_again", {"acquire": "success", "acquire_again": "skipped"}, False),
        ("release_again", {"acquire": "success", "acquire_again": "upstream_failed"}, False),
        ("release_again", {"acquire": "upstream_failed", "acquire_again": "success"}, True),
    ],
)
def test_a_run_that_never_asked_for_the_lock_does_not_look(
    cluster: SandboxCluster, task_id: str, states: dict[str, str | None], looks: bool
) -> None:
    task_context = run(cluster)
    task_context["ti"].task_states = states
    assert two_phases()[task_id].execute(task_context) == ("Free" if looks else NEVER_ASKED)


def test_a_lost_race_is_looked_at_again(cluster: SandboxCluster) -> None:
    cluster.fail_requests(verb="create", kind="ConfigMap", status=409, reason="AlreadyExists", count=1)
    assert acquire(run(cluster))["run_id"] == "run_1"


def test_a_reply_lost_after_the_write_is_not_a_lost_lock(cluster: SandboxCluster) -> None:
    acquire(run(cluster, "run_1"))
    release(run(cluster, "run_1"))
    cluster.fail_requests(verb="update", kind="ConfigMap", status=503, count=1)
    assert acquire(run(cluster, "run_2"))["run_id"] == "run_2"


class Change(FleetOperator):
    """Changes the cluster."""

    preconditions = CHANGES_CLUSTER

    def act(self, context: Any) -> str:
        return "changed"


def change(task_context: dict[str, Any], *, locked: bool = True) -> Any:
    with DAG("gpu_lifecycle.demo", start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        operator = Change(task_id="change")
        if locked:
            AcquireLockOperator(task_id="acquire_turn") >> operator
    return operator.execute(task_context)


def test_a_task_cleared_after_its_runs_end_takes_the_lock_again(cluster: SandboxCluster) -> None:
    acquire(run(cluster))
    release(run(cluster))
    assert change(run(cluster)) == "changed"
    assert held(cluster).run_id == "run_1"


def test_a_task_cleared_after_its_runs_end_leaves_another_run_alone(cluster: SandboxCluster) -> None:
    acquire(run(cluster, "run_2"))
    with pytest.raises(ClusterBusy, match="held by gpu_lifecycle"):
        change(run(cluster, "run_1", {"run_2": "running"}))
    assert held(cluster).run_id == "run_2"
    assert change(run(cluster, "run_1", {"run_2": "success"})) == "changed"


def test_a_change_in_a_dag_without_locks_needs_none(cluster: SandboxCluster) -> None:
    assert change(run(cluster), locked=False) == "changed"
    assert holder(cluster) is None


# --- what finished runs left -----------------------------------------------------------------------------------------
MINE, OVER = "gpu_lifecycle.demo/run_1", "gpu_revalidate.demo/killed"
LEFT = {
    "protected": ({"karpenter.sh/do-not-disrupt": "true", "gpu-fleet.io/protected-by": OVER}, False),
    "drained": ({"gpu-fleet.io/cordoned-by": OVER}, True),
    "mine": ({"karpenter.sh/do-not-disrupt": "true", "gpu-fleet.io/protected-by": MINE}, False),
    "theirs": ({"karpenter.sh/do-not-disrupt": "true"}, True),
}


@pytest.fixture
def nodes(cluster: SandboxCluster) -> Iterator[dict[str, ObjectRef]]:
    """Nodes of a pool that no cluster file has any more."""
    refs = {name: ObjectRef(NODE, name) for name in LEFT}
    for name, (marks, unschedulable) in LEFT.items():
        metadata = {"name": name, "labels": {"karpenter.sh/nodepool": "gone"}, "annotations": marks}
        cluster.kube.create(
            {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"unschedulable": unschedulable}}
        )
    yield refs
    for ref in refs.values():
        cluster.kube.delete(ref)


def state_of(cluster: SandboxCluster, ref: ObjectRef) -> tuple[dict[str, str], bool]:
    found = cluster.kube.get(ref)
    assert found is not None
    return found["metadata"].get("annotations") or {}, bool(found["spec"].get("unschedulable"))


def test_with_the_lock_goes_what_finished_runs_left_on_any_node(
    cluster: SandboxCluster, nodes: dict[str, ObjectRef]
) -> None:
    acquire(run(cluster))
    assert release(run(cluster)) == "Ours"
    assert state_of(cluster, nodes["protected"]) == ({}, False)
    assert state_of(cluster, nodes["drained"]) == ({}, False)
    for name in ("mine", "theirs"):
        assert state_of(cluster, nodes[name]) == LEFT[name]


def test_a_node_that_changes_after_the_look_is_left_to_the_next_run(
    cluster: SandboxCluster, nodes: dict[str, ObjectRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarantine that comes in between keeps the node cordoned."""
    acquire(run(cluster))
    quarantine = {"gpu-fleet.io/quarantined": "{}"}
    real = KubeClient.list

    def look(self: KubeClient, kind: Any, *args: Any, **options: Any) -> list[dict[str, Any]]:
        found = real(self, kind, *args, **options)
        if kind == NODE:
            cluster.kube.patch(nodes["drained"], {"metadata": {"annotations": quarantine}})
        return found

    monkeypatch.setattr(KubeClient, "list", look)
    assert release(run(cluster)) == "Ours"
    assert state_of(cluster, nodes["drained"]) == (LEFT["drained"][0] | quarantine, True)
    assert state_of(cluster, nodes["protected"]) == ({}, False)


def test_a_run_without_the_lock_takes_nothing_back(cluster: SandboxCluster, nodes: dict[str, ObjectRef]) -> None:
    """The run that has it may be the one whose name the node carries."""
    acquire(run(cluster, "run_1"))
    assert release(run(cluster, "run_2")) != "Ours"
    assert {name: state_of(cluster, ref) for name, ref in nodes.items()} == LEFT


def test_the_lock_is_released_also_if_nodes_cannot_be_looked_at(cluster: SandboxCluster) -> None:
    acquire(run(cluster))
    cluster.faults.set("request-faults", {"verb": "list", "resource": "nodes", "status": 403})
    assert release(run(cluster)) == "Ours"
    assert holder(cluster) is None
