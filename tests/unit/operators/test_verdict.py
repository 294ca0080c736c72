"""The run's verdict."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.operators.capacity.climbing import LADDER
from gpu_fleet.operators.lock import SKIPPED
from gpu_fleet.operators.validation.cleanup import STILL_PAID
from gpu_fleet.operators.verdict import (
    RunFailed,
    RunVerdictOperator,
    TeardownRequestedOperator,
    TornDown,
    failed_tasks,
)


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


TORN_DOWN = TornDown(plan="plan", approval="approve", leak_check="leak_check")
RETURNED = "return_value"
PLAN = {"plan": {}, "markdown": "", "id": "p1"}
CLEAN = {"leaks": [], "unchecked": [], "about": "p1", "sentence": "nothing is left of cluster demo-gpu's GPU capacity"}
APPROVED = {"chosen_options": ["Approve"], "about": "p1"}
REJECTED = {"chosen_options": ["Reject"], "about": "p1"}


@pytest.mark.parametrize(
    ("leak_check", "report", "told"),
    [("success", CLEAN, False), ("success", None, True), ("skipped", None, True), ("failed", None, True)],
    ids=["torn down", "marked a success", "kept", "left"],
)
def test_verdict_names_nodes_that_are_still_paid_for(leak_check: str, report: Any, told: bool) -> None:
    operator = RunVerdictOperator(
        task_id="run_verdict", watched=["wait"], clean_ups=["clean", "other"], torn_down=TORN_DOWN
    )
    ti = FakeTaskInstance({"wait": "failed", "clean": "success", "leak_check": leak_check})
    ti.xcoms["clean", STILL_PAID] = "still paid for: NodeClaim a"
    ti.xcoms["plan", RETURNED], ti.xcoms["leak_check", RETURNED] = PLAN, report
    with pytest.raises(RunFailed) as caught:
        operator.execute({"ti": ti})
    assert ("still paid for: NodeClaim a" in caught.value.message) is told


def test_run_without_failures_passes() -> None:
    operator = RunVerdictOperator(task_id="run_verdict", watched=["a", "b"])
    assert operator.execute({"ti": FakeTaskInstance({"a": "success", "b": "skipped"})}) == "none of 2 tasks failed"


def test_capacity_from_a_lower_rung_or_less_than_wanted_is_said_and_no_failure() -> None:
    operator = RunVerdictOperator(task_id="run_verdict", watched=["a"], waits=["await", "other", "plain"])
    ti = FakeTaskInstance({"a": "success"})
    ti.xcoms["await", LADDER] = {"sentence": "capacity came on a lower rung: …", "short": ""}
    ti.xcoms["other", LADDER] = {"sentence": "", "short": "1 of 2 wanted node(s)"}
    told = operator.execute({"ti": ti})
    assert told == "none of 1 tasks failed; await: capacity came on a lower rung: …; other: 1 of 2 wanted node(s)"


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


def teardown_verdict(answer: Any, report: Any, plan: Any = PLAN, state: str = "success", **params: Any) -> str:
    """What the verdict says of a run whose tasks all have one state."""
    ti = FakeTaskInstance(dict.fromkeys(("plan", "approve", "delete", "leak_check"), state))
    for task_id, value in (("plan", plan), ("approve", answer), ("leak_check", report)):
        ti.xcoms[task_id, RETURNED] = value
    watched = ["plan", "approve", "delete", "leak_check"]
    operator = RunVerdictOperator(task_id="run_verdict", watched=watched, torn_down=TORN_DOWN)
    return operator.execute({"ti": ti, "params": params})


#: What the tasks of a teardown have returned, none of which failed: the answer, the leak check's report, the plan.
SHOWN_NOTHING: dict[str, tuple[Any, Any, Any]] = {
    "every task was marked by hand": (None, None, None),
    "only the plan was made": (None, None, PLAN),
    "approved, and what follows was marked": (APPROVED, None, PLAN),
    "the approval was marked": (None, None, PLAN),
    "the leak check is of an earlier plan": (APPROVED, {**CLEAN, "about": "p0"}, PLAN),
    "the rejection was of an earlier plan": ({**REJECTED, "about": "p0"}, None, PLAN),
    "the leak check names another plan than the one without an id": (APPROVED, CLEAN, {"plan": {}}),
    "the leak check names no plan, and this one has an id": (APPROVED, {**CLEAN, "about": None}, PLAN),
    "the report names leaks": (APPROVED, {**CLEAN, "leaks": [{"kind": "EC2 instance"}]}, PLAN),
}


@pytest.mark.parametrize("state", ["success", "skipped"])
@pytest.mark.parametrize("situation", SHOWN_NOTHING)
def test_a_teardown_that_has_shown_nothing_is_no_success(situation: str, state: str) -> None:
    answer, report, plan = SHOWN_NOTHING[situation]
    with pytest.raises(RunFailed, match="leak_check has not shown that nothing is left") as caught:
        teardown_verdict(answer, report, plan, state)
    assert caught.value.reason == "NotTornDown"


def test_a_teardown_whose_leak_check_found_nothing_passes_with_its_sentence() -> None:
    assert teardown_verdict(APPROVED, CLEAN) == f"none of 4 tasks failed; {CLEAN['sentence']}"


@pytest.mark.parametrize("more", [{}, {"about": None}], ids=["looked before the update", "looked since"])
def test_a_teardown_that_a_version_before_the_plans_ids_began_passes_by_what_it_left(more: dict[str, None]) -> None:
    before = {key: value for key, value in CLEAN.items() if key != "about"}
    assert CLEAN["sentence"] in teardown_verdict(APPROVED, {**before, **more}, {"plan": {}})


def test_a_teardown_that_was_answered_with_reject_passes_and_says_that_the_capacity_stays() -> None:
    assert teardown_verdict(REJECTED, None, state="skipped").endswith(
        "approve was answered with Reject: the capacity stays"
    )


def test_a_lifecycle_demands_a_teardown_only_if_its_param_asks_for_one() -> None:
    assert teardown_verdict(None, None, None, until="validated") == "none of 4 tasks failed"
    with pytest.raises(RunFailed):
        teardown_verdict(None, None, None, until="torn_down")


@pytest.mark.parametrize("until", ["validated", None])
def test_teardown_is_skipped_unless_asked_for(until: str | None) -> None:
    with pytest.raises(AirflowSkipException, match="the capacity stays"):
        TeardownRequestedOperator(task_id="t").execute({"params": {"until": until}})


def test_teardown_begins_when_asked_for() -> None:
    assert TeardownRequestedOperator(task_id="t").execute({"params": {"until": "torn_down"}}) == "torn_down"
