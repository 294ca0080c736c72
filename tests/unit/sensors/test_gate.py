from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import DeadlinePassed, GateBlind, GateFailed, GateRefused, SpecError
from gpu_fleet.core.kubernetes.kinds import RUNTIME_CLASS, ObjectRef
from gpu_fleet.core.verdict import failed, progressing, ready, unseen
from gpu_fleet.sensors.gate import DEADLINE_OF_GATE, GateSensor
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

NVIDIA = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "name": "nvidia"}
REF = ObjectRef(RUNTIME_CLASS, "nvidia")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    yield shared
    shared.faults.clear()
    shared.kube.delete(REF)


def sense(cluster: SandboxCluster, ti: TaskInstance | None = None, **options: Any) -> Any:
    sensor = GateSensor(task_id="exists", **({"gate": "object_exists", "args": NVIDIA} | options))
    return sensor.execute(context(ti or task_instance(cluster)))


def task_instance(cluster: SandboxCluster) -> TaskInstance:
    return TaskInstance(spec=spec_at(str(cluster.access.path)))


def complete(verdict: Any, kind: str = "verdict") -> Any:
    event = {"type": kind, "gate": "object_exists", "verdict": verdict.to_json()}
    return GateSensor(task_id="exists", gate="object_exists", args=NVIDIA).execute_complete({}, event)


def test_a_gate_that_is_ready_costs_no_deferral(cluster: SandboxCluster) -> None:
    cluster.kube.create(
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "x"}
    )
    assert sense(cluster)["reason"] == "ObjectExists"


def test_what_is_waited_for_can_be_asked_while_deferred(cluster: SandboxCluster) -> None:
    ti = task_instance(cluster)
    with pytest.raises(TaskDeferred) as deferred:
        sense(cluster, ti, deadline=timedelta(seconds=90))
    waiting = ti.xcoms["waiting_for"]
    assert (waiting["gate"], waiting["reason"]) == ("object_exists", "NotFound")
    assert waiting["deadline"] == deferred.value.trigger.deadline
    assert 80 < waiting["deadline"] - time.time() <= 90


def test_retries_share_the_first_trys_deadline_and_a_clear_begins_a_new_one(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = GateSensor(task_id="exists", gate="object_exists", args=NVIDIA, deadline=timedelta(hours=1))
    task, begin = context(task_instance(cluster)), time.time()

    def deadline_at(seconds: float) -> float:
        monkeypatch.setattr(time, "time", lambda: begin + seconds)
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute(task)
        return deferred.value.trigger.deadline - begin  # type: ignore[no-any-return]

    assert deadline_at(0) == 3600
    task["ti"].try_number = 2
    assert deadline_at(1800) == 3600
    # What Airflow does on a clear after two tries, with two retries.
    task["ti"].try_number, task["ti"].max_tries = 3, 4
    assert deadline_at(2400) == 6000
    monkeypatch.setattr(time, "time", lambda: begin + 6001)
    with pytest.raises(DeadlinePassed, match="NotFound"):
        sensor.execute(task)


def test_no_credential_travels_with_the_trigger(cluster: SandboxCluster) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        sense(cluster)
    _, arguments = deferred.value.trigger.serialize()
    assert set(arguments) == {"gate", "args", "access", "deadline", "started", "last"}
    assert set(arguments["access"]) == {"mode", "aws_conn_id", "region", "cluster_name", "path", "context"}


def test_an_outage_at_the_first_look_is_waited_for_too(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_fleet.hooks.kubernetes.transport.RETRY_BUDGET_S", 0.0)
    cluster.fail_requests(verb="list", kind="RuntimeClass", status=503)
    ti = task_instance(cluster)
    with pytest.raises(TaskDeferred):
        sense(cluster, ti)
    assert ti.xcoms["waiting_for"]["reason"] == "ApiUnavailable"


def test_a_missing_permission_is_not_waited_for(cluster: SandboxCluster) -> None:
    ti = TaskInstance(spec=spec_at(str(cluster.access_for("nobody").path)))
    with pytest.raises(GateBlind, match="cannot list resource"):
        sense(cluster, ti)


@pytest.mark.parametrize(
    ("verdict", "kind", "error"),
    [
        (failed("A", "passes", permanent=False), "verdict", GateFailed),
        (failed("A", "stays"), "verdict", GateRefused),
        (progressing("A", "missing x"), "deadline", DeadlinePassed),
        (unseen("A", "no answer", permanent=False), "deadline", GateBlind),
    ],
)
def test_the_triggers_event_becomes_the_typed_error(verdict: Any, kind: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=verdict.message):
        complete(verdict, kind)


def test_the_triggers_event_becomes_the_result() -> None:
    assert complete(ready("A", "b", node="n"))["data"] == {"node": "n"}


def test_arguments_are_templated_and_must_be_a_mapping(cluster: SandboxCluster) -> None:
    assert GateSensor.template_fields == ("gate", "args")
    with pytest.raises(SpecError, match="args is a str"):
        sense(cluster, args="{'name': 'x'}")


def test_every_gate_of_the_table_has_a_deadline_in_the_spec(cluster: SandboxCluster) -> None:
    deadlines = spec_at(str(cluster.access.path)).deadlines
    assert all(getattr(deadlines, field).seconds > 0 for field in DEADLINE_OF_GATE.values())


def test_a_gate_outside_the_table_needs_a_deadline(cluster: SandboxCluster) -> None:
    with pytest.raises(SpecError, match="no default deadline"):
        sense(cluster, gate="no_such_gate")
