from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.lock import Holder, record
from gpu_fleet.core.verdict import Phase

HELD = record(Holder("https://af", "gpu_lifecycle.demo", "manual__1", "2026-09-01T10:00:00Z"))


@pytest.mark.parametrize(
    ("records", "now", "phase", "reason"),
    [
        ([], 0, Phase.READY, "TurnFree"),
        ([record(None)], 0, Phase.READY, "TurnFree"),
        ([HELD], 59, Phase.PROGRESSING, "ClusterBusy"),
        ([HELD], 60, Phase.READY, "Recheck"),
    ],
)
def test_turn(records: list[dict[str, Any]], now: float, phase: Phase, reason: str) -> None:
    verdict = gate_named("turn_free").judge({"turn": records}, {"recheck_at": 60, "here": now, "now": 0, "started": 0})
    assert (verdict.phase, verdict.reason) == (phase, reason)


def test_the_holder_is_named() -> None:
    verdict = gate_named("turn_free").judge({"turn": [HELD]}, {"here": 1, "now": 1, "started": 0})
    assert "gpu_lifecycle.demo/manual__1 of https://af since 2026-09-01T10:00:00Z" in verdict.message
