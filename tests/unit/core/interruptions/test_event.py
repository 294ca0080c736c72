"""The payload of the asset event."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from gpu_fleet.core.interruptions.event import Case, Payload, by_instance, uri
from gpu_fleet.core.interruptions.messages import Kind, Notice

SPOT = Notice(Kind.SPOT, "i-1", 100.0, 220.0, "terminate", "e1")
REBALANCE = Notice(Kind.REBALANCE, "i-1", 90.0, None, "", "e0")
DONE = Case(SPOT, "n1", "u1", "c1", "a", "", True, True, 99.5, None)
BLIND = Case(SPOT, problem="ApiUnavailable: away")


def test_the_asset() -> None:
    assert uri("demo") == "gpu-fleet://demo/interruptions"


@pytest.mark.parametrize("case", [DONE, BLIND, replace(DONE, pool="", node_group="g", claim=None)])
def test_what_is_written_is_read(case: Case) -> None:
    payload = Payload("demo", 101.0, (case,), {"unknown": 2})
    assert Payload.from_json(json.loads(json.dumps(payload.to_json()))) == payload


def test_the_names_in_the_payload() -> None:
    assert Payload("demo", 101.0, (DONE,), {"weaker": 1}).to_json() == {
        "cluster": "demo",
        "read_at": 101.0,
        "notices": [
            {
                "kind": "SpotInterruption",
                "instance": "i-1",
                "at": 100.0,
                "deadline": 220.0,
                "action": "terminate",
                "event": "e1",
                "node": "n1",
                "nodeUid": "u1",
                "claim": "c1",
                "pool": "a",
                "nodeGroup": "",
                "marked": True,
                "cordoned": True,
                "sent": 99.5,
                "problem": None,
                "pods": [],
            }
        ],
        "skipped": {"weaker": 1},
    }


@pytest.mark.parametrize(
    "value", [{}, {"cluster": "x", "read_at": 1, "notices": [{}]}, {"cluster": "x", "read_at": "?"}]
)
def test_something_else_is_no_payload(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no "):
        Payload.from_json(value)


def test_events_become_one_case_per_instance() -> None:
    first = Payload("demo", 1.0, (replace(DONE, notice=REBALANCE, cordoned=False),))
    second = Payload("demo", 2.0, (DONE,))
    blind = Payload("demo", 3.0, (BLIND,))
    for order in itertools.permutations([first, second, blind]):
        assert by_instance(order) == {"i-1": DONE}


def test_a_problem_stays_until_an_event_without_one() -> None:
    later = replace(BLIND, problem="Forbidden: x")
    assert by_instance([Payload("demo", 1.0, (BLIND,)), Payload("demo", 2.0, (later,))]) == {"i-1": later}
