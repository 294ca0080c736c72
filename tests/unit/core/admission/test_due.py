"""When a run has to look at a node that nobody has proven."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.admission.due import due_at
from gpu_fleet.core.kubernetes.names import ANNOTATION_PROTECTED_BY, CONDITION_PROVEN, TAINT_UNPROVEN
from tests.unit.core.cluster_objects import NOW, POOL, node

BOX_S = 1200.0
#: ``node`` is created ten seconds before it becomes Ready, ten minutes ago.
BORN = NOW - 610.0


def due(
    *, locked: bool = False, pools: tuple[str, ...] = (POOL,), proven: tuple[str, str] | None = None, **changes: Any
) -> float | None:
    found = node("n", **{"initialized": False, "taints": (TAINT_UNPROVEN,), **changes})
    if proven is not None:
        found["status"]["conditions"].append({"type": CONDITION_PROVEN, "status": proven[0], "reason": proven[1]})
    return due_at(found, pools, BOX_S, locked=locked, now=NOW)


def test_a_node_that_can_be_proven_is_due_at_once() -> None:
    assert due() == NOW


def test_while_a_run_holds_the_lock_it_has_half_of_the_time_box() -> None:
    assert due(locked=True) == BORN + BOX_S / 2


@pytest.mark.parametrize("changes", [{"gpus": None}, {"gpus": 0}, {"ready": False}, {"cordoned": True}])
@pytest.mark.parametrize("locked", [True, False])
def test_a_node_that_cannot_be_probed_yet_is_due_when_its_time_is_over(changes: dict[str, Any], locked: bool) -> None:
    assert due(locked=locked, **changes) == BORN + BOX_S


def test_what_was_interrupted_is_completed_at_once() -> None:
    assert due(locked=True, proven=("True", "ProofPassed")) == NOW


def test_a_node_without_a_verdict_stays_due() -> None:
    assert due(proven=("Unknown", "ProofPending")) == NOW


@pytest.mark.parametrize(
    "changes",
    [
        {"taints": ()},
        {"deleting": True},
        {"taints": (TAINT_UNPROVEN, "karpenter.sh/disrupted")},
        {"pools": ("another",)},
        {"annotations": {ANNOTATION_PROTECTED_BY: "gpu_lifecycle.demo/r"}},
        {"proven": ("False", "XidError")},
        {"proven": ("Unknown", "ProofOverdue")},
    ],
    ids=["open", "deleting", "disrupted", "of another pool", "being proven", "failed", "overdue"],
)
def test_no_run_is_needed(changes: dict[str, Any]) -> None:
    assert due(**changes) is None
