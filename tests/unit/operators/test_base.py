"""What all operators share: when they skip themselves."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.sdk import DAG
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import ApiUnavailable, DeadlinePassed, SpecError
from gpu_fleet.core.spec import SpecErrors
from gpu_fleet.operators.base import RETRY_POLICY, FleetOperator, RunIf, frozen_spec
from gpu_fleet.operators.turn import AcquireTurnOperator
from tests.unit.core.specs import demo_mapping


class Probe(FleetOperator):
    """Says that it ran."""

    needs_kube = False

    def prepare(self, context: Mapping[str, Any]) -> None:
        """No spec is needed."""

    def act(self, context: Mapping[str, Any]) -> str:
        return "ran"


class InTurn(Probe):
    only_in_turn = True


class FakeTaskInstance:
    """What the operators ask of Airflow's task instance."""

    dag_id, run_id = "gpu_lifecycle.demo", "run"

    def __init__(self, states: dict[str, str] | None = None, xcoms: dict[str, Any] | None = None) -> None:
        self.states, self.xcoms = states or {}, xcoms or {}

    def get_task_states(self, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, Any]:
        assert (dag_id, run_ids) == (self.dag_id, [self.run_id])
        return {self.run_id: {name: state for name, state in self.states.items() if name in task_ids}}

    def xcom_pull(self, task_ids: str) -> Any:
        return self.xcoms.get(task_ids)


def run(operator: FleetOperator, ti: FakeTaskInstance) -> Any:
    return operator.execute({"ti": ti, "params": {}})


STATES = ["success", "failed", "upstream_failed", "skipped", "removed"]


@pytest.mark.parametrize(
    ("condition", "enough"),
    [(RunIf.ANY_SUCCEEDED, {"success"}), (RunIf.ANY_FAILED, {"failed", "upstream_failed"})],
)
def test_condition_over_every_pair_of_states(condition: RunIf, enough: set[str]) -> None:
    assert not condition.holds([])
    for first in STATES:
        for second in STATES:
            assert condition.holds([first, second]) == bool({first, second} & enough), (first, second)


def pair(run_if: RunIf | None) -> FleetOperator:
    with DAG("gpu_lifecycle.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        first, other, task = Probe(task_id="a"), Probe(task_id="b"), Probe(task_id="c", run_if=run_if)
        Probe(task_id="elsewhere")
        [first, other] >> task
    return task


def test_pool_left_out_does_not_keep_the_proof_from_running() -> None:
    assert run(pair(RunIf.ANY_SUCCEEDED), FakeTaskInstance({"a": "success", "b": "skipped"})) == "ran"


def test_without_any_success_the_task_skips_itself_and_names_its_upstreams() -> None:
    states = {"a": "failed", "b": "skipped", "elsewhere": "success"}
    with pytest.raises(AirflowSkipException, match="not any succeeded of: a, b"):
        run(pair(RunIf.ANY_SUCCEEDED), FakeTaskInstance(states))


def test_without_any_failure_there_is_nothing_to_remedy() -> None:
    with pytest.raises(AirflowSkipException, match="not any failed"):
        run(pair(RunIf.ANY_FAILED), FakeTaskInstance({"a": "success", "b": "skipped"}))
    assert run(pair(RunIf.ANY_FAILED), FakeTaskInstance({"a": "upstream_failed", "b": "success"})) == "ran"


def test_task_without_a_condition_does_not_ask() -> None:
    assert run(pair(None), FakeTaskInstance()) == "ran"


def chain() -> FleetOperator:
    with DAG("gpu_lifecycle.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        turn, between, task = AcquireTurnOperator(task_id="turn"), Probe(task_id="between"), InTurn(task_id="clean_up")
        turn >> between >> task
    return task


def test_run_that_never_had_the_turn_leaves_the_cluster_alone() -> None:
    with pytest.raises(AirflowSkipException, match="never had the cluster's turn"):
        run(chain(), FakeTaskInstance({"turn": "failed", "between": "upstream_failed"}))


def test_run_that_has_the_turn_tidies_up() -> None:
    assert run(chain(), FakeTaskInstance(xcoms={"turn": {"run_id": "run"}})) == "ran"


def test_graph_without_turns_is_not_restricted() -> None:
    with DAG("own", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        task = InTurn(task_id="clean_up")
    assert run(task, FakeTaskInstance()) == "ran"


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (SpecError("wrong"), RetryAction.FAIL),
        (DeadlinePassed("late"), RetryAction.FAIL),
        # Asked again, the approval's deadline would begin anew.
        (HITLTimeoutError({"error_type": "timeout"}), RetryAction.FAIL),
        (ApiUnavailable("gone"), RetryAction.DEFAULT),
        (ValueError("a bug"), RetryAction.DEFAULT),
    ],
)
def test_retry_policy_tells_what_a_retry_can_cure(error: Exception, action: RetryAction) -> None:
    assert RETRY_POLICY.evaluate(error, try_number=1, max_tries=3).action is action


def test_a_spec_that_an_older_version_froze_and_this_one_refuses_is_named() -> None:
    """Cleared after an upgrade, a task must not end in an error without a type, nor be retried."""
    frozen = {"spec": {**demo_mapping(), "schedule": "@daily\n"}}
    with pytest.raises(SpecErrors, match=r"the spec that this run was pinned to: .*\n  - schedule: "):
        frozen_spec({"ti": FakeTaskInstance(xcoms={"freeze_spec": frozen})})
