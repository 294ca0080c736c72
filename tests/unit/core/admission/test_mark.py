"""What a node shows about its proof, and the patches that change it."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.admission.mark import Proof, Proven, is_kept_closed, is_unproven, marked, opened, proof_of
from gpu_fleet.core.kubernetes.names import CONDITION_PROVEN, TAINT_UNPROVEN
from tests.unit.core.cluster_objects import NOW, node

LATER = NOW + 3600
PASSED = Proof(Proven.YES, "ProofPassed", "proven by gpu_lifecycle.demo/r1")


def closed(*more: str, condition: dict[str, Any] | None = None) -> dict[str, Any]:
    found = node("n", initialized=False, taints=(TAINT_UNPROVEN, *more))
    if condition is not None:
        found["status"]["conditions"].append({"type": CONDITION_PROVEN, **condition})
    return found


def with_mark(found: dict[str, Any], proof: Proof, now: float) -> dict[str, Any]:
    """The node after the strategic merge patch: conditions are merged by their type."""
    body = marked(found, proof, now)
    assert body is not None
    (entry,) = body["status"]["conditions"]
    others = [each for each in found["status"]["conditions"] if each["type"] != CONDITION_PROVEN]
    return {**found, "status": {**found["status"], "conditions": [*others, entry]}}


def test_node_without_a_condition_has_no_proof() -> None:
    assert proof_of(node("n")) is None
    assert not is_unproven(node("n"))
    assert is_unproven(closed())


def test_status_that_kubernetes_does_not_have_is_no_proof() -> None:
    assert proof_of(closed(condition={"status": "Maybe"})) is None


def test_condition_is_read_back_as_it_was_written() -> None:
    assert proof_of(with_mark(closed(), PASSED, NOW)) == PASSED


def test_a_second_proof_keeps_the_moment_of_the_first_and_moves_the_heartbeat() -> None:
    once = with_mark(closed(), PASSED, NOW)
    twice = with_mark(once, Proof(Proven.YES, "ProofPassed", "proven by gpu_revalidate.demo/r2"), LATER)
    first, second = once["status"]["conditions"][-1], twice["status"]["conditions"][-1]
    assert second["lastTransitionTime"] == first["lastTransitionTime"]
    assert second["lastHeartbeatTime"] > first["lastHeartbeatTime"]
    assert second["message"].endswith("r2")


def test_another_status_is_a_transition() -> None:
    once = with_mark(closed(), PASSED, NOW)
    twice = with_mark(once, Proof(Proven.NO, "XidError", "XID 79"), LATER)
    assert (
        twice["status"]["conditions"][-1]["lastTransitionTime"] > once["status"]["conditions"][-1]["lastTransitionTime"]
    )


def test_what_is_pending_is_not_written_again_and_again() -> None:
    pending = Proof(Proven.UNKNOWN, "ProofPending", "not tested yet")
    assert marked(with_mark(closed(), pending, NOW), pending, LATER) is None


def test_a_long_message_is_cut_and_still_recognized() -> None:
    pending = Proof(Proven.UNKNOWN, "ProofPending", "x" * 4000)
    once = with_mark(closed(), pending, NOW)
    assert len(once["status"]["conditions"][-1]["message"]) == 500
    assert marked(once, pending, LATER) is None


def test_only_our_taint_is_removed_and_only_from_the_version_that_was_read() -> None:
    found = closed("team/maintenance")
    found["metadata"]["resourceVersion"] = "7"
    body = opened(found)
    assert body is not None
    assert body["metadata"] == {"resourceVersion": "7"}
    assert [taint["key"] for taint in body["spec"]["taints"]] == ["nvidia.com/gpu", "team/maintenance"]


def test_open_node_is_left_alone() -> None:
    assert opened(node("n")) is None


@pytest.mark.parametrize(
    ("status", "reason", "kept"),
    [
        ("False", "XidError", True),
        ("Unknown", "ProofOverdue", True),
        ("Unknown", "ProofPending", False),
        ("True", "ProofPassed", False),
    ],
)
def test_which_closed_nodes_wait_for_another_proof(status: str, reason: str, kept: bool) -> None:
    assert is_kept_closed(closed(condition={"status": status, "reason": reason})) is kept


def test_a_node_that_takes_pods_is_not_kept_closed() -> None:
    found = node("n")
    found["status"]["conditions"].append({"type": CONDITION_PROVEN, "status": "False", "reason": "XidError"})
    assert not is_kept_closed(found)
