"""Capacity that comes and goes by a script, and the faults that it is made of."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.aws import weather
from sandbox.faults import FaultBoard

SPOT_A = {"instanceType": "g5.xlarge", "zone": "us-west-2a", "capacityType": "spot"}
DEMAND_B = {"instanceType": "g5.2xlarge", "zone": "us-west-2b", "capacityType": "on-demand"}


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> FaultBoard:
    return FaultBoard()


def at(monkeypatch: pytest.MonkeyPatch, board: FaultBoard, seconds: float, offering: dict[str, str]) -> str | None:
    """What EC2 answers so many simulated seconds after the script was set, at speed 10."""
    (_, since) = board.each_since(weather.WEATHER)[0]
    with monkeypatch.context() as patch:
        patch.setattr(weather.time, "monotonic", lambda: since + seconds / 10)
        return weather.refusal(board, offering, speed=10)


def test_fair_weather_refuses_nothing(board: FaultBoard) -> None:
    assert weather.refusal(board, SPOT_A, 1) is None


@pytest.mark.parametrize(
    ("seconds", "spot", "demand"),
    [
        (0, "InsufficientInstanceCapacity", None),
        (119, "InsufficientInstanceCapacity", None),
        (120, None, None),
        (200, None, "UnfulfillableCapacity"),
        (9999, None, "UnfulfillableCapacity"),
    ],
)
def test_a_spell_begins_and_ends(
    monkeypatch: pytest.MonkeyPatch, board: FaultBoard, seconds: float, spot: str | None, demand: str | None
) -> None:
    script: list[dict[str, Any]] = [
        {"capacityType": "spot", "until": 120},
        {"instanceType": "g5.2xlarge", "zone": "us-west-2b", "from": 200, "code": "UnfulfillableCapacity"},
    ]
    board.set("weather", {"spells": script})
    assert at(monkeypatch, board, seconds, SPOT_A) == spot
    assert at(monkeypatch, board, seconds, DEMAND_B) == demand


def test_faults_of_one_kind_add_up_and_each_has_its_own_beginning(board: FaultBoard) -> None:
    board.set("weather:a", {"zone": "us-west-2a"})
    board.set("weather:b", {"zone": "us-west-2b", "code": "Unsupported"})
    assert weather.refusal(board, SPOT_A, 1) == "InsufficientInstanceCapacity"
    assert weather.refusal(board, DEMAND_B, 1) == "Unsupported"
    assert [spell["zone"] for spell in weather.spells(board, 1) if spell["now"]] == ["us-west-2a", "us-west-2b"]
    board.clear("weather:a")
    assert weather.refusal(board, SPOT_A, 1) is None
