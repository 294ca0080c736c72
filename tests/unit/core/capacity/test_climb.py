"""What a run has tried, as it is kept and told."""

from __future__ import annotations

from typing import Any

from gpu_fleet.core.capacity.climb import Climb, Result
from gpu_fleet.core.capacity.told import climb_brief, climb_sentences
from tests.unit.core.capacity.test_ladder import FIRST, LAST, PRICES, SECOND, bought

ICE = "creating instance, insufficient capacity, with fleet error(s), InsufficientInstanceCapacity: no g5.xlarge"


def launched(name: str, kind: str, capacity: str = "on-demand") -> dict[str, Any]:
    found = bought(name, LAST)
    found["metadata"]["labels"] |= {
        "node.kubernetes.io/instance-type": kind,
        "karpenter.sh/capacity-type": capacity,
        "topology.kubernetes.io/zone": "us-west-2b",
    }
    return found


def climbed() -> Climb:
    """The first rung gave nothing, the second one node, the last another."""
    old, mine = launched("old", "g5.xlarge"), launched("mine", "g5.2xlarge")
    climb = Climb(3, (), before=("old",)).begin(FIRST, 1000.0, PRICES, FIRST, ["e2", "e1"])
    climb = climb.end(Result.GIVEN_UP, 1010.0, [old], PRICES, "InsufficientCapacity", ICE)
    climb = climb.begin(SECOND, 1012.0, PRICES, FIRST, ["e3"])
    climb = climb.end(Result.GIVEN_UP, 1192.0, [old, mine], PRICES, "TimeBoxOver", "nothing refused")
    climb = climb.begin(LAST, 1195.0, PRICES, FIRST, [])
    return climb.end(Result.CAPACITY, 1300.0, [old, mine, launched("third", "g6.xlarge", "spot")], PRICES)


def test_each_attempt_has_only_what_was_launched_in_it() -> None:
    first, second, last = climbed().attempts
    assert [[each.claim for each in attempt.bought] for attempt in (first, second, last)] == [[], ["mine"], ["third"]]
    assert [str(attempt.result) for attempt in (first, second, last)] == ["GivenUp", "Partly", "Capacity"]
    assert second.bought[0].price.usd == 1.2
    assert (last.bought[0].price.usd, last.bought[0].price.at_most) == (0.8, True)


def test_it_comes_back_from_json_as_it_was() -> None:
    climb = climbed()
    assert Climb.from_json(climb.to_json()) == climb
    under_way = Climb(2, ()).begin(FIRST, 5.0, PRICES, FIRST, ["b", "a"])
    assert Climb.from_json(under_way.to_json()) == under_way
    assert under_way.heard == ("a", "b")


def test_beginning_or_ending_twice_changes_nothing() -> None:
    climb = Climb(2, ()).begin(FIRST, 5.0, PRICES, FIRST, [])
    assert climb.begin(FIRST, 99.0, PRICES, FIRST, ["x"]) == climb
    over = climb.end(Result.GIVEN_UP, 9.0, [], PRICES, "A", "b")
    assert over.end(Result.CAPACITY, 10.0, [], PRICES) == over
    assert (climb.climbs, over.climbs) == (True, False)


def test_a_claim_of_a_users_pod_is_not_the_ladders() -> None:
    users = launched("users", "g5.xlarge")
    users["spec"]["requirements"] = [r for r in users["spec"]["requirements"] if r["operator"] == "In"]
    climb = Climb(2, ()).begin(FIRST, 5.0, PRICES, FIRST, []).end(Result.GIVEN_UP, 9.0, [users], PRICES, "A", "b")
    assert climb.now.bought == ()
    assert climb.now.result is Result.GIVEN_UP


def test_the_account_says_what_was_tried_for_how_long_and_what_ec2_said() -> None:
    account = climbed().account()
    assert f"rung 1 (g5.xlarge spot, at most 1.00 USD/h) for 10 s: InsufficientCapacity: {ICE}" in account
    assert (
        "rung 2 (g5.2xlarge spot or on-demand in us-west-2b, at most 1.20 USD/h) for 180 s: EC2 launched 1: mine"
        in account
    )
    assert account.index("rung 1") < account.index("rung 2") < account.index("rung 3")


def test_a_lower_rung_is_told_with_its_price_and_the_first_is_not() -> None:
    told = climbed().summary()
    assert told.startswith("capacity came on a lower rung: 1 node(s) on rung 2 of 3: g5.2xlarge")
    assert "given up: rung 1 (g5.xlarge spot): InsufficientCapacity" in told
    first = Climb(2, ()).begin(FIRST, 5.0, PRICES, FIRST, [])
    assert first.end(Result.CAPACITY, 9.0, [launched("a", "g5.xlarge", "spot")], PRICES).summary() == ""


def test_the_difference_to_spot_is_a_lower_bound() -> None:
    second = climbed().attempts[1]
    assert second.more() == "at least +0.20 USD/h against the first rung"
    assert climbed().attempts[0].more() == ""


def test_what_an_asset_event_has_of_it_is_small() -> None:
    climb = climbed()
    told = {**climb.to_json(), "lower": climb.lower, "sentence": climb.summary(), "short": "3 of 4"}
    small = climb_brief(told)
    assert (small["of"], small["lower"], small["short"]) == (3, True, "3 of 4")
    assert small["attempts"][0] == {
        "rung": 1,
        "what": "g5.xlarge spot",
        "from": "1970-01-01T00:16:40+00:00",
        "to": "1970-01-01T00:16:50+00:00",
        "result": "GivenUp",
        "reason": "InsufficientCapacity",
        "usdPerHour": 1.0,
        "usdPerHourIsAtMost": True,
        "said": ICE,
        "nodeClaims": [],
    }
    assert small["attempts"][1]["nodeClaims"] == ["mine"]
    assert climb_sentences(told) == (climb.summary(), "3 of 4")
    assert climb_sentences(None) == ("", "")
