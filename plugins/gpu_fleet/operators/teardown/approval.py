"""The approval of a teardown; the precondition ``Approved`` of the tasks after it demands the answer."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import DownstreamTasksSkipped

from gpu_fleet.core.teardown.approval import ABOUT, about

#: XCom key: the id of the plan that a person was shown.
SHOWN = "shown"


class TeardownApprovalOperator(ApprovalOperator):
    """Asks a person to approve a teardown plan.

    :param plan_task_id: the task whose plan is shown; each result has an id of its own.
    :returns: what :class:`ApprovalOperator` returns, and under ``about`` the id of the plan that was answered.
    """

    #: How the tasks after it find it, see ``operators/preconditions.py``.
    asks_approval = True

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
