"""Climbs in a modelled Karpenter, by a clock that stands still: every weather, and a kill at every call."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gpu_fleet.core.errors import DeadlinePassed, GateRefused
from gpu_fleet.core.kubernetes.objects import node_of
from tests.unit.operators.capacity.model import TYPES, ZONES, Run, World, in_the, ladder_spec

ICE, QUOTA = "InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded"
LADDER = [
    {"instanceTypes": ["g5.xlarge"], "capacityTypes": ["spot"], "for": "10m"},
    {"instanceTypes": ["g5.2xlarge"], "capacityTypes": ["on-demand"]},
]
#: Seconds from the request to a node's GPUs in fair weather.
FAIR_S = 100


def no_spot(code: str, until: float = 1e9) -> Any:
    return lambda kind, zone, capacity, at: code if capacity == "spot" and at < until else None


def climbed(world: World) -> tuple[Run, dict[str, Any], float]:
    began, run = world.now, Run(world)
    with in_the(world):
        found = run()
    return run, found, world.now - began


def test_fair_weather_takes_the_first_rung() -> None:
    world = World(ladder_spec(LADDER), lambda *_: None)
    run, found, seconds = climbed(world)
    assert [each["type"] for each in found["instances"].values()] == ["g5.xlarge"]
    assert (len(run.told["attempts"]), run.told["lower"]) == (1, False)
    assert seconds <= FAIR_S


@pytest.mark.parametrize(
    ("code", "box", "most"),
    [(ICE, "10m", 600), (ICE, "2m", 30), (QUOTA, "10m", 30), ("Unsupported", "10m", 30)],
    ids=["capacity may come back", "Karpenter would ask too late", "a quota", "a zone without the type"],
)
def test_the_next_rung_begins_when_waiting_cannot_help_and_at_the_latest_after_the_time_box(
    code: str, box: str, most: float
) -> None:
    world = World(ladder_spec([{**LADDER[0], "for": box}, LADDER[1]]), no_spot(code))
    run, found, seconds = climbed(world)
    assert [each["type"] for each in found["instances"].values()] == ["g5.2xlarge"]
    assert seconds <= 1.15 * (most + FAIR_S)
    assert run.told["attempts"][0]["ended"] - run.told["attempts"][0]["began"] <= most
    assert (world.most, world.clashes) == (1, [])


def test_capacity_that_comes_back_is_taken_when_karpenter_asks_again() -> None:
    world = World(ladder_spec(LADDER), no_spot(ICE, until=170))
    run, found, seconds = climbed(world)
    assert [each["type"] for each in found["instances"].values()] == ["g5.xlarge"]
    assert len(run.told["attempts"]) == 1
    assert 180 <= seconds <= 180 + FAIR_S


def test_the_deadline_passes_on_the_last_rung_and_the_error_has_the_account() -> None:
    world = World(ladder_spec(LADDER), lambda *_: ICE)
    run = Run(world)
    with in_the(world), pytest.raises(DeadlinePassed) as passed:
        run()
    assert "tried: rung 1 (g5.xlarge spot" in passed.value.message
    assert "rung 2 (g5.2xlarge on-demand" in passed.value.message
    assert run.told["attempts"][-1]["result"] == "GivenUp"


@pytest.mark.parametrize("minimum", [1, 2, None])
def test_a_minimum_is_enough_at_the_deadline_too(minimum: int | None) -> None:
    """The first instance is all that EC2 has."""
    given = []

    def one(kind: str, zone: str, capacity: str, at: float) -> str | None:
        given.append(at)
        return None if len(given) == 1 else ICE

    world = World(ladder_spec(LADDER, wanted=2, minimum=minimum), one)
    run = Run(world)
    with in_the(world):
        if minimum == 1:
            assert len(run()["nodes"]) == 1
            assert run.told["short"].startswith("1 of 2")
            assert [pod for pod in world.pods.values() if not node_of(pod)] == []
        else:
            with pytest.raises(DeadlinePassed):
                run()
    assert world.most == 1


def weather(dice: random.Random) -> Any:
    spells = []
    for _ in range(dice.randint(2, 14)):
        start = dice.choice([0, 0, dice.randint(0, 1800)])
        end = start + dice.randint(30, 2400)
        of = [dice.choice(values) if dice.random() < 0.6 else None for values in (TYPES, ZONES, ["spot", "on-demand"])]
        spells.append((start, end, of, dice.choice([ICE, ICE, ICE, "UnfulfillableCapacity", QUOTA, "Unsupported"])))

    room, given = dice.choice([1, 2, 99, 99]), [0]

    def sky(kind: str, zone: str, capacity: str, at: float) -> str | None:
        for start, end, of, code in spells:
            if start <= at < end and all(a in (None, b) for a, b in zip(of, (kind, zone, capacity), strict=True)):
                return code
        given[0] += 1
        return None if given[0] <= room else "VcpuLimitExceeded"

    return sky


def random_ladder(dice: random.Random) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _ in range(dice.randint(1, 4)):
        rung = {
            "instanceTypes": sorted(dice.sample(TYPES, dice.randint(1, 2))),
            "capacityTypes": sorted(dice.sample(["spot", "on-demand"], dice.randint(1, 2))),
            "zones": sorted(dice.sample(ZONES, dice.randint(1, 3))),
            "for": f"{dice.randint(1, 6)}m",
        }
        if not found or {**found[-1], "for": ""} != {**rung, "for": ""}:
            found.append(rung)
    return found


@pytest.mark.parametrize("seed", [*range(1, 6), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(6, 41))])
def test_any_weather_ends_in_capacity_or_in_a_complete_account_even_if_the_task_is_killed(seed: int) -> None:
    dice = random.Random(seed)
    wanted, minimum = dice.randint(1, 3), dice.choice([None, None, 1])
    spec = ladder_spec(random_ladder(dice), wanted, minimum)
    world = World(spec, weather(dice))
    world.dies_at = dice.choice([0, dice.randint(1, 120)])
    run, failure, found = Run(world), None, {}
    with in_the(world):
        try:
            found = run()
        except GateRefused as error:
            failure = error
    told, rungs = run.told, spec.pool("shared-a10g").capacity.ladder
    assert world.most <= wanted
    assert world.clashes == []
    assert [each["rung"] for each in told["attempts"]] == list(range(1, len(told["attempts"]) + 1))
    bought = {each["nodeClaim"] for attempt in told["attempts"] for each in attempt["bought"]}
    assert set(world.claims) == bought, "every instance is told of, and nothing else is on its way"
    if failure is None:
        assert len(found["nodes"]) >= (wanted if minimum is None else minimum)
        assert len(found["nodes"]) == wanted or told["short"]
    else:
        assert failure.reason == "LadderExhausted"
        assert len(told["attempts"]) == len(rungs)
        assert all(f"{each['reason']}: {each['said']}" in failure.message for each in told["attempts"])


@pytest.mark.full
def test_a_task_that_is_killed_at_any_call_to_the_api_server_ends_as_if_it_had_not_been() -> None:
    """One kill at each call in turn, over the whole climb: request, first rung, the step, second rung."""
    whole = World(ladder_spec(LADDER, wanted=2), no_spot(QUOTA))
    climbed(whole)
    assert whole.calls > 50
    for call in range(1, whole.calls + 1):
        world = World(ladder_spec(LADDER, wanted=2), no_spot(QUOTA))
        world.dies_at = call
        run, found, _ = climbed(world)
        assert len(found["nodes"]) == 2, call
        results = [(each["rung"], each["result"], len(each["bought"])) for each in run.told["attempts"]]
        assert results == [(1, "GivenUp", 0), (2, "Capacity", 2)], call
        assert (world.most, world.clashes, len(world.pods)) == (2, [], 2), call
