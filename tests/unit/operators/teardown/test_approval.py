"""What follows a teardown's approval demands the answer itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import DownstreamTasksSkipped, TaskAwaitingInput

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.core.teardown.approval import Answer, answer_to
from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.preconditions import Approved
from gpu_fleet.operators.teardown import approval
from gpu_fleet.operators.teardown.approval import TeardownApprovalOperator
from gpu_fleet.phases.teardown import APPROVE, PLAN, teardown
from tests.unit.core.specs import demo_spec


class Run:
    """A run's XComs, by task."""

    dag_id, run_id, id, max_tries, map_index = "gpu_teardown.demo", "manual__1", "0199", 0, -1

    def __init__(self, **returned: Any) -> None:
        self.xcoms: dict[tuple[str, str], Any] = {}
        self.here = ""
        for task_id, value in returned.items():
            self.xcoms[f"teardown.{task_id}", "return_value"] = value
        self.xcoms["freeze_spec", "return_value"] = {"spec": demo_spec().to_json()}

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self.xcoms.get((task_ids, key))

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[self.here, key] = value


@pytest.fixture(scope="module")
def dag() -> DAG:
    with DAG("gpu_teardown.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as made:
        teardown(demo_spec())
    return made


PLANNED = {"plan": {}, "markdown": "m", "id": "p1"}
NO_ANSWERS: dict[str, Any] = {
    "marked as a success": None,
    "answered with Reject": {"chosen_options": ["Reject"], "about": "p1"},
    "an answer to an earlier plan": {"chosen_options": ["Approve"], "about": "p0"},
}

#: The tasks behind the approval that look only, or give back what was taken.
LOOKS_OR_GIVES_BACK = {
    "node_claims_gone", "instances_gone", "node_classes_gone", "leak_check", "undo_freeze", "release_turn",
    "publish_shared-a10g", "publish_whole-a100",
}  # fmt: skip


def behind_the_approval(dag: DAG) -> list[str]:
    return sorted(dag.get_task(APPROVE).get_flat_relative_ids(upstream=False))


def executed(dag: DAG, task_id: str, ti: Run, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Execute a task as far as to its own work, which is replaced."""
    task = dag.get_task(task_id)
    monkeypatch.setattr(type(task), "prepare", lambda self, context: None)
    monkeypatch.setattr(type(task), "act", lambda self, context: "acted")
    monkeypatch.setattr("gpu_fleet.operators.preconditions.keep_lock", lambda operator, context: None)
    return FleetOperator.execute(task, {"ti": ti, "params": {}})


@pytest.mark.parametrize("situation", NO_ANSWERS)
def test_nothing_that_carries_out_the_plan_runs_without_its_approval(
    dag: DAG, situation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting = [t for t in behind_the_approval(dag) if t.removeprefix("teardown.") not in LOOKS_OR_GIVES_BACK]
    assert {"teardown.acquire_turn", "teardown.plan_again", "teardown.delete_node_pools"} < set(acting)
    assert {"teardown.uninstall_karpenter", "teardown.delete_runtime_class", "teardown.delete_node_classes"} < set(
        acting
    )
    for task_id in acting:
        with pytest.raises(PermanentError, match=r"clear teardown\.plan and what follows it") as caught:
            executed(dag, task_id, Run(plan=PLANNED, approve=NO_ANSWERS[situation]), monkeypatch)
        assert caught.value.reason == "NotApproved"
        approved = {"chosen_options": ["Approve"], "about": "p1"}
        assert executed(dag, task_id, Run(plan=PLANNED, approve=approved), monkeypatch) == "acted"


def test_what_gives_back_needs_no_approval(dag: DAG, monkeypatch: pytest.MonkeyPatch) -> None:
    ti = Run(plan=PLANNED)
    ti.xcoms["teardown.acquire_turn", "return_value"] = {"deployment": "d"}
    assert executed(dag, "teardown.undo_freeze", ti, monkeypatch) == "acted"


def test_a_dag_without_an_approval_demands_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with DAG("other", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        operator = FleetOperator(task_id="task")
    Approved().check(operator, {"ti": Run()})


def test_the_answer_names_the_plan_that_was_shown_and_not_one_made_since(
    dag: DAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = dag.get_task(APPROVE)
    assert isinstance(task, TeardownApprovalOperator)
    assert task.plan_task_id == PLAN
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
    ti = Run(plan=PLANNED)
    ti.here = APPROVE
    context = {"ti": ti, "task_instance": ti, "task": task}
    with pytest.raises(TaskAwaitingInput):
        task.execute(context)
    ti.xcoms[PLAN, "return_value"] = {**PLANNED, "id": "p2"}
    event = {
        "chosen_options": ["Approve"], "params_input": {}, "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": "1", "name": "a"},
    }  # fmt: skip
    answer = task.execute_complete(context, event)
    assert (answer["chosen_options"], answer[approval.ABOUT]) == (["Approve"], "p1")


def test_a_rejection_is_left_as_an_answer_although_airflow_stores_no_result_of_it(
    dag: DAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ApprovalOperator`` ends by an exception after Reject."""
    task = dag.get_task(APPROVE)
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
    ti = Run(plan=PLANNED)
    ti.here = APPROVE
    context = {"ti": ti, "task_instance": ti, "task": task}
    with pytest.raises(TaskAwaitingInput):
        task.execute(context)
    event = {
        "chosen_options": ["Reject"], "params_input": {}, "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": "1", "name": "a"},
    }  # fmt: skip
    with pytest.raises(DownstreamTasksSkipped):
        task.execute_complete(context, event)
    answer = ti.xcoms[APPROVE, "return_value"]
    assert answer_to(PLANNED, answer) is Answer.REJECTED
