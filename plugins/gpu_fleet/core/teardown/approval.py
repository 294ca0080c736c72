"""A person's answer to a teardown plan, and what a run must show before it may report that everything is torn down.

Marking a task as success or skipped changes only its state (apache-airflow 3.3.2 ``airflow/api/common/mark_tasks.py``
``set_state``): it leaves no XCom. So a state is no answer and proves nothing; only what the task itself has returned
counts. Airflow keeps the XComs of a cleared task until it starts again
(``api_fastapi/execution_api/routes/task_instances.py`` ``ti_run``), so answer and leak check name the plan that they
are about.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

#: The options of ``ApprovalOperator`` (apache-airflow-providers-standard 1.21 ``operators/hitl.py``).
APPROVE, REJECT = "Approve", "Reject"
#: Key of a planning task's result: a new value for each plan.
PLAN_ID = "id"
#: Key under which an answer, and a leak check, name the plan that they are about.
ABOUT = "about"


class Answer(StrEnum):
    """A person's answer to a plan."""

    APPROVED = "Approved"
    REJECTED = "Rejected"
    NONE = "None"


def about(plan: Any) -> str | None:
    """The id of a planning task's result; ``None`` without a result."""
    found = plan.get(PLAN_ID) if isinstance(plan, Mapping) else None
    return str(found) if found else None


def answer_to(plan: Any, approval: Any) -> Answer:
    """The answer to this plan.

    :param plan: what the planning task returned.
    :param approval: what the approval returned; ``None`` without an answer, whatever state was set by hand.
    """
    if not _is_about(approval, plan):
        return Answer.NONE
    chosen = approval.get("chosen_options")
    if chosen == [APPROVE]:
        return Answer.APPROVED
    if chosen == [REJECT]:
        return Answer.REJECTED
    return Answer.NONE


def shows_nothing_left(plan: Any, report: Any) -> bool:
    """Whether a leak check that belongs to this plan has found nothing.

    :param report: what the leak check returned; ``None`` if it did not succeed by itself.
    """
    return _is_about(report, plan) and report.get("leaks") == []


def _is_about(result: Any, plan: Any) -> bool:
    """Whether a task's result is about this plan.

    Earlier versions of this package wrote no id into either. A run that began with them is completed with results
    without ids: a state that is set by hand leaves no result at all, and a new plan has an id.
    """
    return isinstance(plan, Mapping) and isinstance(result, Mapping) and result.get(ABOUT) == about(plan)
