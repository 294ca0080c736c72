"""The run's verdict."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.operators.turn import SKIPPED
from gpu_fleet.operators.validation_cleanup import STILL_PAID
from gpu_fleet.operators.verdict import RunFailed, RunVerdictOperator, TeardownRequestedOperator, failed_tasks


class FakeTaskInstance:
    """What the operator asks of Airflow's task instance."""

    dag_id = "gpu_lifecycle.demo"
    run_id = "run"

    def __init__(self, states: dict[str, str]) -> None:
        self.states = states
        self.xcoms: dict[tuple[str, str], Any] = {}

    def xcom_pull(self, task_ids: str, key: str) -> Any:
        return self.xcoms.get((task_ids, key))

    def get_task_states(self, dag_id: str, run_ids: list[str]) -> dict[str, Any]:
        assert (dag_id, run_ids) == (self.dag_id, [self.run_id])
        return {self.run_id: self.states}


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({}, []),
        ({"a": "success", "b": "skipped", "c": "upstream_failed"}, []),
        ({"a": "failed", "b": "success"}, ["a"]),
        ({"b": "failed", "a": "failed"}, ["a", "b"]),
        ({"other": "failed"}, []),
        ({"a_0": "success", "a_12": "failed"}, ["a[12]"]),
        ({"a_b": "failed"}, []),
    ],
)
def test_failed_tasks(states: dict[str, str], expected: list[str]) -> None:
    assert failed_tasks(states, ["a", "b", "c"]) == expected


def test_earlier_failure_fails_the_run() -> None:
    operator = RunVerdictOperator(task_id="run_verdict", watched=["a", "b"])
    with pytest.raises(RunFailed, match=r"1 task\(s\) of this run failed: b;"):
        operator.execute({"ti": FakeTaskInstance({"a": "success", "b": "failed"})})


@pytest.mark.parametrize(
    ("leak_check", "told"), [("success", False), ("skipped", True), ("failed", True)], ids=["torn down", "kept", "left"]
)
def test_verdict_names_nodes_that_are_still_paid_for(leak_check: str, told: bool) -> None:
    operator = RunVerdictOperator(
        task_id="run_verdict", watched=["wait"], clean_ups=["clean", "other"], nothing_left="leak_check"
    )
    ti = FakeTaskInstance({"wait": "failed", "clean": "success", "leak_check": leak_check})
    ti.xcoms["clean", STILL_PAID] = "still paid for: NodeClaim a"
    with pytest.raises(RunFailed) as caught:
        operator.execute({"ti": ti})
    assert ("still paid for: NodeClaim a" in caught.value.message) is told


def test_run_without_failures_passes() -> None:
    operator = RunVerdictOperator(task_id="run_verdict", watched=["a", "b"])
    assert operator.execute({"ti": FakeTaskInstance({"a": "success", "b": "skipped"})}) == "none of 2 tasks failed"


@pytest.mark.parametrize("states", [{"a": "skipped"}, {"a": "success"}], ids=["marked failed", "marked a success"])
def test_a_run_that_a_person_ended_while_nothing_failed_is_no_success(states: dict[str, str]) -> None:
    operator = RunVerdictOperator(task_id="run_verdict", watched=["a", "end"], end="end")
    assert operator.execute({"ti": FakeTaskInstance({**states, "end": "success"})}) == "none of 2 tasks failed"
    with pytest.raises(RunFailed, match="a person ended this run"):
        operator.execute({"ti": FakeTaskInstance({**states, "end": "skipped"})})


def test_a_run_that_found_the_cluster_busy_says_so() -> None:
    ti = FakeTaskInstance({"acquire": "skipped", "a": "skipped"})
    ti.xcoms["acquire", SKIPPED] = {"reason": "ClusterBusy", "message": "held by x/run_1"}
    operator = RunVerdictOperator(task_id="run_verdict", watched=["acquire", "a"], turn="acquire")
    assert operator.execute({"ti": ti}) == "ClusterBusy: held by x/run_1"


@pytest.mark.parametrize("until", ["validated", None])
def test_teardown_is_skipped_unless_asked_for(until: str | None) -> None:
    with pytest.raises(AirflowSkipException, match="the capacity stays"):
        TeardownRequestedOperator(task_id="t").execute({"params": {"until": until}})


def test_teardown_begins_when_asked_for() -> None:
    assert TeardownRequestedOperator(task_id="t").execute({"params": {"until": "torn_down"}}) == "torn_down"
