"""Twenty seeded scripts of weather: capacity comes and goes by type, zone and capacity type while a run climbs.

Whatever the weather, a run ends with the nodes that its pool needs, or with the complete account of what was tried;
never more instances than the cap, never two rungs buying at once, and no instance that nothing has told of.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import GateRefused
from tests.unit.operators.capacity.climbs import TYPES, Ascent, Sky, ladder_fleet, quick, sky

pytestmark = [pytest.mark.real_helm, pytest.mark.full, pytest.mark.timeout(300)]

SEEDS = range(1, 21)
ZONES = ["us-west-2a", "us-west-2b", "us-west-2c"]
KINDS = ["spot", "on-demand"]
#: What EC2 says; the first comes and goes, the others do not pass in the time of a run.
CODES = ["InsufficientInstanceCapacity"] * 4 + ["UnfulfillableCapacity", "MaxSpotInstanceCountExceeded", "Unsupported"]
#: Real seconds of a rung, and simulated ones of a script.
BOX_S, SCRIPT_S = 8, 1800


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sky]:
    with sky(tmp_path_factory.mktemp("weather")) as found:
        yield found


@pytest.fixture(autouse=True)
def _empty(world: Sky, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quick(monkeypatch)
    yield
    world.clear()


def script(dice: random.Random) -> list[dict[str, Any]]:
    """Between fair and foul."""
    spells = []
    for _ in range(dice.randint(3, 14)):
        start = dice.choice([0, 0, dice.randint(0, SCRIPT_S)])
        spell: dict[str, Any] = {"from": start, "until": start + dice.randint(60, SCRIPT_S), "code": dice.choice(CODES)}
        for key, values in (("instanceType", TYPES), ("capacityType", KINDS), ("zone", ZONES)):
            if dice.random() < 0.6:
                spell[key] = dice.choice(values)
        spells.append(spell)
    return spells


def ladder(dice: random.Random) -> list[dict[str, Any]]:
    rungs: list[dict[str, Any]] = []
    for _ in range(dice.randint(2, 4)):
        rung: dict[str, Any] = {
            "instanceTypes": sorted(dice.sample(TYPES, dice.randint(1, 2))),
            "capacityTypes": sorted(dice.sample(KINDS, dice.randint(1, 2))),
            "zones": sorted(dice.sample(ZONES, dice.randint(1, 3))),
            "for": f"{BOX_S}s",
        }
        if not rungs or rungs[-1] != rung:
            rungs.append(rung)
    return rungs


@pytest.mark.parametrize("seed", SEEDS)
def test_any_weather_ends_in_capacity_or_in_a_complete_account(world: Sky, seed: int) -> None:
    dice = random.Random(seed)
    wanted = dice.randint(1, 3)
    minimum = dice.choice([None, None, 1])
    spec = ladder_fleet(ladder(dice), wanted, cap=3, minimum=minimum)
    rungs = spec.node_pools[0].capacity.ladder
    world.provide(spec)
    world.watches(spec)
    spells = script(dice)
    world.weather(*spells)
    ascent, failure, found = Ascent(spec, f"seed-{seed}"), None, {}
    try:
        found = ascent()
    except GateRefused as error:
        failure = error
    told = ascent.told
    tried = [attempt["rung"] for attempt in told["attempts"]]
    bought = {each["nodeClaim"] for attempt in told["attempts"] for each in attempt["bought"]}
    assert tried == list(range(1, len(tried) + 1)), "each rung once, in their order"
    for attempt in told["attempts"][:-1]:
        assert attempt["reason"], attempt
        assert attempt["said"], attempt
    if failure is None:
        assert len(found["nodes"]) >= (wanted if minimum is None else minimum)
        assert len(found["nodes"]) == wanted or told["short"]
        assert told["lower"] is any(a["rung"] > 1 and a["bought"] for a in told["attempts"])
    else:
        assert failure.reason == "LadderExhausted"
        assert tried == list(range(1, len(rungs) + 1))
        for attempt in told["attempts"]:
            assert attempt["reason"] in failure.message
            assert f"rung {attempt['rung']} ({attempt['what']}" in failure.message
    ascent.clean_up()
    assert world.placeholders() == []
    # Every instance is one that the account tells of, by its NodeClaim.
    paid = {
        tag["Value"] for each in world.instances() for tag in each["Tags"] if tag["Key"] == "karpenter.sh/nodeclaim"
    }
    assert paid <= bought, (paid, bought)
    assert world.most <= wanted
    assert world.clashes == []
