"""A person's answer to a teardown plan, and what a run must show before it may say that everything was torn down.

Marking a task as success or skipped changes its state and nothing else (apache-airflow 3.3.2
``airflow/api/common/mark_tasks.py`` ``set_state``): it leaves no XCom. So a state is no answer and proves nothing; what
counts is what the task itself has returned. Airflow keeps the XComs of a task that is cleared until it starts anew
(``api_fastapi/execution_api/routes/task_instances.py`` ``ti_run``), so answer and leak check name the plan that they
are about.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

#: The options of ``ApprovalOperator`` (apache-airflow-providers-standard 1.21 ``operators/hitl.py``).
APPROVE, REJECT = "Approve", "Reject"
#: Key of a planning task's result: another value for each plan that was made.
PLAN_ID = "id"
#: Key under which an answer, and a leak check, name the plan that they are about.
ABOUT = "about"


class Answer(StrEnum):
    """What a person has said to a plan."""

    APPROVED = "Approved"
    REJECTED = "Rejected"
    NONE = "None"


def about(plan: Any) -> str | None:
    """The id of a planning task's result; ``None`` if the task has left none."""
    found = plan.get(PLAN_ID) if isinstance(plan, Mapping) else None
    return str(found) if found else None


def answer_to(plan: Any, approval: Any) -> Answer:
    """What was answered to this plan.

    :param plan: what the planning task returned. :param approval: what the approval returned; ``None`` if nobody has
        answered, whatever state the task was given by hand.
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
    """Whether a leak check has looked after this plan was made and found nothing.

    :param report: what the leak check returned; ``None`` if it did not succeed by itself.
    """
    return _is_about(report, plan) and report.get("leaks") == []


def _is_about(result: Any, plan: Any) -> bool:
    """Whether a task's result is about this plan.

    Versions of this package before the id gave neither of them a name; a run that they have begun is finished by what
    they left: no state that is set by hand leaves a result at all, and a plan that is made anew has an id.
    """
    return isinstance(plan, Mapping) and isinstance(result, Mapping) and result.get(ABOUT) == about(plan)
