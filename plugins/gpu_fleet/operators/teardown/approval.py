"""The approval of a teardown, and the demand for it by every task that comes after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import DownstreamTasksSkipped

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.core.teardown.approval import ABOUT, Answer, about, answer_to

if TYPE_CHECKING:
    from gpu_fleet.operators.base import FleetOperator

#: XCom key: the id of the plan that a person was shown.
SHOWN = "shown"


class TeardownApprovalOperator(ApprovalOperator):
    """Asks a person to approve a teardown plan.

    :param plan_task_id: the task whose plan is shown; each result has an id of its own.
    :returns: what :class:`ApprovalOperator` returns, and under ``about`` the id of the plan that was answered.
    """

    def __init__(self, *, plan_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_task_id = plan_task_id

    def execute(self, context: Any) -> Any:
        # Recorded before the question is asked: a new plan may be made while a person still reads this one.
        context["ti"].xcom_push(SHOWN, about(context["ti"].xcom_pull(task_ids=self.plan_task_id)))
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        ti = context["ti"]
        shown = ti.xcom_pull(task_ids=self.task_id, key=SHOWN)
        try:
            answer = super().execute_complete(context, event)
        except DownstreamTasksSkipped:
            # After Reject it ends by this exception, and Airflow stores no result of a task that raises (apache-airflow
            # 3.3.2 sdk/execution_time/task_runner.py; providers-standard 1.21 operators/hitl.py, utils/skipmixin.py).
            ti.xcom_push(BaseXCom.XCOM_RETURN_KEY, {"chosen_options": list(event["chosen_options"]), ABOUT: shown})
            raise
        return {**answer, ABOUT: shown}


def require_approval(operator: FleetOperator, context: Mapping[str, Any]) -> None:
    """Refuse a task that would carry out a plan which no person has approved.

    The approval's *state* does not count, because any user may mark the task as a success. A task without an approval
    before it needs none.

    :raises PermanentError: ``NotApproved``.
    """
    ti, dag = context["ti"], operator.get_dag()
    for task_id in operator.tasks_before(TeardownApprovalOperator):
        approval = dag.get_task(task_id) if dag is not None else None
        plan_task_id = str(getattr(approval, "plan_task_id", ""))
        answer = answer_to(ti.xcom_pull(task_ids=plan_task_id), ti.xcom_pull(task_ids=task_id))
        if answer is not Answer.APPROVED:
            said = "was answered with Reject" if answer is Answer.REJECTED else "has not been answered"
            raise PermanentError(
                f"task {operator.task_id} carries out the plan of {plan_task_id}, but {task_id} {said} for that plan "
                f"(a state that was set by hand is not an answer); clear {plan_task_id} and what follows it, then "
                f"answer {task_id}",
                reason="NotApproved",
            )
