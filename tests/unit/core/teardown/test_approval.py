from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.standard.operators.hitl import ApprovalOperator

from gpu_fleet.core.teardown.approval import APPROVE, REJECT, Answer, answer_to, shows_nothing_left

PLAN = {"plan": {}, "id": "p1"}


def test_the_options_are_those_of_airflow() -> None:
    assert (APPROVE, REJECT) == (ApprovalOperator.APPROVE, ApprovalOperator.REJECT)


@pytest.mark.parametrize(
    ("plan", "approval", "answer"),
    [
        (PLAN, {"chosen_options": ["Approve"], "about": "p1"}, Answer.APPROVED),
        (PLAN, {"chosen_options": ["Reject"], "about": "p1"}, Answer.REJECTED),
        (PLAN, None, Answer.NONE),
        (PLAN, {"chosen_options": ["Approve"]}, Answer.NONE),
        (PLAN, {"chosen_options": ["Approve"], "about": "p0"}, Answer.NONE),
        (PLAN, {"chosen_options": [], "about": "p1"}, Answer.NONE),
        (PLAN, {"chosen_options": ["Approve", "Reject"], "about": "p1"}, Answer.NONE),
        (PLAN, {"about": "p1"}, Answer.NONE),
        (None, {"chosen_options": ["Approve"], "about": None}, Answer.NONE),
        (None, {"chosen_options": ["Approve"]}, Answer.NONE),
        ({"plan": {}}, None, Answer.NONE),
        ({"plan": {}}, {"chosen_options": ["Approve"], "about": "p1"}, Answer.NONE),
    ],
)
def test_only_an_answer_to_this_plan_is_one(plan: Any, approval: Any, answer: Answer) -> None:
    assert answer_to(plan, approval) is answer


@pytest.mark.parametrize("more", [{}, {"about": None}], ids=["answered before", "answered since"])
def test_a_plan_of_a_version_before_the_ids_is_answered_by_what_names_none(more: dict[str, None]) -> None:
    """The package was updated while a person thought, or while the run was torn down."""
    before = {"plan": {}, "markdown": "…"}
    assert answer_to(before, {"chosen_options": ["Approve"], **more}) is Answer.APPROVED
    assert answer_to(before, {"chosen_options": ["Reject"], **more}) is Answer.REJECTED
    assert shows_nothing_left(before, {"leaks": [], **more})
    assert not shows_nothing_left(before, {"leaks": [{}], **more})


@pytest.mark.parametrize(
    ("plan", "report", "shown"),
    [
        (PLAN, {"leaks": [], "about": "p1"}, True),
        (PLAN, {"leaks": [{}], "about": "p1"}, False),
        (PLAN, {"about": "p1"}, False),
        (PLAN, {"leaks": [], "about": "p0"}, False),
        (PLAN, None, False),
        (None, {"leaks": [], "about": None}, False),
        (None, {"leaks": []}, False),
        ({"plan": {}}, None, False),
        ({"plan": {}}, {"leaks": [], "about": "p1"}, False),
    ],
)
def test_only_a_look_after_this_plan_shows_that_nothing_is_left(plan: Any, report: Any, shown: bool) -> None:
    assert shows_nothing_left(plan, report) is shown
