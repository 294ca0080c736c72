"""The overlay's part of the gate ``node_pool_ready``, and the gate of a burst."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.capacity.burst import BURST
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.verdict import Verdict

NAME = "gpu-fleet-shared-a10g"
NOW, CREATED = 1_000_000_000.0, "2001-09-09T01:46:30Z"  # ten seconds before


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason or kind, "message": message, "observedGeneration": 1}


def item(kind: str, name: str, *conditions: dict[str, Any], weight: int = 10000) -> dict[str, Any]:
    meta = {"name": name, "generation": 1, "creationTimestamp": CREATED}
    return {"kind": kind, "metadata": meta, "spec": {"weight": weight}, "status": {"conditions": list(conditions)}}


READY = condition("Ready", "True")
POOL = item("NodePool", "shared-a10g", READY)


def judge(*overlays: dict[str, Any], pool: dict[str, Any] | None = None, started: float = NOW - 60) -> Verdict:
    args = {"name": "shared-a10g", "overlay": NAME, "started": started, "now": NOW}
    gate = gate_named("node_pool_ready")
    assert [query.key for query in gate.queries(args)] == ["objects", "overlays"]
    return gate.judge({"objects": [pool or POOL], "overlays": list(overlays)}, args)


def test_pool_and_overlay_are_ready() -> None:
    verdict = judge(item("NodeOverlay", NAME, READY))
    assert verdict.ready
    assert f"NodeOverlay {NAME} is Ready" in verdict.message


def test_without_an_overlay_to_wait_for_none_is_asked_for() -> None:
    gate = gate_named("node_pool_ready")
    args = {"name": "shared-a10g", "started": NOW, "now": NOW}
    assert [query.key for query in gate.queries(args)] == ["objects"]
    assert gate.judge({"objects": [POOL]}, args).ready


@pytest.mark.parametrize(
    ("overlays", "phase", "reason", "says"),
    [
        ((), "Progressing", "NotFound", "does not exist"),
        ((item("NodeOverlay", NAME),), "Failed", "NodeOverlayIgnored", "feature gate NodeOverlay is off"),
        (
            (
                item(
                    "NodeOverlay", NAME, condition("ValidationSucceeded", "False", "Conflict", "conflict with another")
                ),
                item("NodeOverlay", "gpus-of-team-b", READY),
                item("NodeOverlay", "light", READY, weight=1),
            ),
            "Failed",
            "OverlayConflict",
            "gpus-of-team-b; change that",
        ),
        (
            (item("NodeOverlay", NAME, condition("ValidationSucceeded", "False", "RuntimeValidation", "bad key")),),
            "Failed",
            "NodeOverlayInvalid",
            "bad key",
        ),
        ((item("NodeOverlay", NAME, condition("Ready", "Unknown", "Waits", "soon")),), "Progressing", "Waits", "soon"),
    ],
)
def test_an_overlay_that_karpenter_has_not_taken_in(
    overlays: tuple[dict[str, Any], ...], phase: str, reason: str, says: str
) -> None:
    verdict = judge(*overlays)
    assert (str(verdict.phase), verdict.reason) == (phase, reason)
    assert says in verdict.message


def test_a_young_overlay_is_waited_for() -> None:
    assert judge(item("NodeOverlay", NAME), started=NOW - 1).reason == "NoConditions"
    young = item("NodeOverlay", NAME)
    young["metadata"]["creationTimestamp"] = "2001-09-09T01:46:39Z"
    assert judge(young).reason == "NoConditions"


# --- burst ------------------------------------------------------------------------------------------------------------


def claims(count: int, *, overlaid: bool = True) -> list[dict[str, Any]]:
    notes = {"karpenter.sh/capacity-overlay-applied": "true"} if overlaid else {}
    labels = {"karpenter.sh/nodepool": "p"}
    return [{"metadata": {"name": f"c{n}", "labels": labels, "annotations": notes}} for n in range(count)]


def pods(bound: int, of: int = 8) -> list[dict[str, Any]]:
    return [{"metadata": {"name": f"b{n}"}, "spec": {"nodeName": "n"} if n < bound else {}} for n in range(of)]


@pytest.mark.parametrize(
    ("found", "running", "phase", "reason", "says"),
    [
        (claims(0), 0, "Progressing", "BurstWaits", "0 of 8"),
        (claims(2), 7, "Progressing", "BurstWaits", "7 of 8"),
        (claims(2), 8, "Ready", "BurstFits", "bought 2 nodes"),
        (claims(3, overlaid=False), 8, "Failed", "BurstBoughtTooMany", "karpenter.nodeOverlays"),
        (claims(4), 2, "Failed", "BurstBoughtTooMany", "advertise fewer GPUs"),
        (claims(1), 8, "Failed", "BurstBoughtTooFew", "instead of 2"),
    ],
)
def test_a_burst(found: list[dict[str, Any]], running: int, phase: str, reason: str, says: str) -> None:
    verdict = BURST.judge({"claims": found, "pods": pods(running)}, {"pool": "p", "pods": 8, "most_nodes": 2})
    assert (str(verdict.phase), verdict.reason) == (phase, reason)
    assert says in verdict.message
