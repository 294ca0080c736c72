"""Which nodes take users' pods at the end of a run: the decision for every situation."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.admission.decide import LEAVE, Decision, TimeBox, decide
from gpu_fleet.core.admission.mark import Proven
from gpu_fleet.core.kubernetes.names import ANNOTATION_PROTECTED_BY, CONDITION_PROVEN, TAINT_UNPROVEN
from gpu_fleet.core.pools.quarantine import Judgement
from gpu_fleet.core.validation.report import Outcome
from tests.unit.core.cluster_objects import NOW, node

RUN = "gpu_admit.demo/r1"
AGE = 110.0
IN_TIME, OVER = TimeBox(1200, admits=False), TimeBox(60, admits=False)
XID = Judgement(Outcome.FAILED, "XidError", "XID 79", "sharing")
GOOD = Judgement(Outcome.PASSED, passed=frozenset({"sharing"}))
DOUBT = Judgement(Outcome.INCONCLUSIVE, "ReportsMissing", "3 of 4", "sharing")
BUSY = Judgement(Outcome.BUSY, "Busy", "all GPUs in use", "sharing")


def make(
    judged: Judgement | None = None,
    box: TimeBox = IN_TIME,
    *,
    closed: bool = True,
    condition: tuple[str, str] | None = None,
    protected_by: str = "",
    why: str = "",
) -> Decision:
    annotations = {ANNOTATION_PROTECTED_BY: protected_by} if protected_by else {}
    found: dict[str, Any] = node(
        "n", ready_for=AGE - 10, taints=(TAINT_UNPROVEN,) if closed else (), annotations=annotations
    )
    if condition is not None:
        found["status"]["conditions"].append({"type": CONDITION_PROVEN, "status": condition[0], "reason": condition[1]})
    return decide(found, judged, box, now=NOW, run=RUN, why=why)


def said(found: Decision) -> tuple[str, str, bool]:
    assert found.proof is not None
    return str(found.proof.status), found.proof.reason, found.admit


def test_a_proven_node_is_opened_and_names_the_run() -> None:
    found = make(GOOD)
    assert said(found) == ("True", "ProofPassed", True)
    assert found.proof is not None
    assert RUN in found.proof.message


def test_a_node_that_failed_stays_closed_with_the_reason_of_its_check() -> None:
    assert said(make(XID)) == ("False", "XidError", False)


@pytest.mark.parametrize("judged", [GOOD, XID])
def test_an_open_node_keeps_its_pods_whatever_a_revalidation_finds(judged: Judgement) -> None:
    found = make(judged, closed=False)
    assert not found.admit
    assert found.proof is not None
    assert found.proof.status is (Proven.YES if judged is GOOD else Proven.NO)


@pytest.mark.parametrize("judged", [DOUBT, BUSY, None])
@pytest.mark.parametrize("box", [IN_TIME, OVER])
def test_nothing_is_said_of_an_open_node_that_was_not_judged(judged: Judgement | None, box: TimeBox) -> None:
    assert make(judged, box, closed=False) == LEAVE


def test_a_node_that_failed_before_may_pass_now() -> None:
    assert said(make(GOOD, condition=("False", "XidError"))) == ("True", "ProofPassed", True)


@pytest.mark.parametrize("admits", [True, False])
def test_no_time_box_opens_a_node_that_failed(admits: bool) -> None:
    """``withWarning`` is for nodes of which nothing is known."""
    assert make(None, TimeBox(60, admits), condition=("False", "XidError")) == LEAVE
    assert said(make(XID, TimeBox(60, admits))) == ("False", "XidError", False)


def test_what_a_killed_task_had_proven_is_opened_without_another_proof() -> None:
    assert make(None, condition=("True", "ProofPassed")) == Decision(admit=True)


@pytest.mark.parametrize(
    ("judged", "why", "message"),
    [
        (DOUBT, "", "ReportsMissing: 3 of 4"),
        (BUSY, "", "Busy: all GPUs in use"),
        (None, "ClusterBusy: the lock is held by x", "ClusterBusy: the lock is held by x"),
        (None, "", "not tested yet"),
    ],
)
def test_without_a_verdict_the_condition_says_what_is_waited_for(
    judged: Judgement | None, why: str, message: str
) -> None:
    found = make(judged, why=why)
    assert said(found) == ("Unknown", "ProofPending", False)
    assert found.proof is not None
    assert found.proof.message == message


def test_after_the_time_box_the_policy_decides() -> None:
    assert said(make(DOUBT, OVER)) == ("Unknown", "ProofOverdue", False)
    assert said(make(DOUBT, TimeBox(60, admits=True))) == ("Unknown", "AdmittedUnproven", True)


@pytest.mark.parametrize("box", [IN_TIME, OVER])
def test_a_node_that_another_run_is_proving_is_left_to_it(box: TimeBox) -> None:
    assert make(None, box, protected_by="gpu_lifecycle.demo/other") == LEAVE
    assert make(DOUBT, box, protected_by=RUN) != LEAVE
