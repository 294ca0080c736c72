"""A pool's ladder against the whole sandbox: what EC2 refuses, what is tried next, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import GateRefused
from gpu_fleet.core.kubernetes.kinds import NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.objects import node_of
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.capacity import climbing, rungs
from tests.unit.operators.capacity.climbs import POOL, Ascent, Sky, ladder_fleet, quick, sky

pytestmark = [pytest.mark.real_helm, pytest.mark.timeout(300)]

#: Real seconds: the sandbox's Karpenter asks EC2 again after three.
SPOT = {"instanceTypes": ["g5.xlarge"], "capacityTypes": ["spot"], "for": "12s"}
OTHER = {"instanceTypes": ["g5.2xlarge"], "capacityTypes": ["on-demand"], "for": "60s"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sky]:
    with sky(tmp_path_factory.mktemp("ladder")) as found:
        yield found


@pytest.fixture(autouse=True)
def _empty(world: Sky, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quick(monkeypatch)
    yield
    world.clear()


def node_pool(kube: KubeClient) -> dict[str, Any]:
    return dict((kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"])


def types(found: dict[str, Any]) -> list[str]:
    return sorted(each["type"] for each in found["instances"].values())


def asking(world: Sky) -> list[str]:
    return [pod["metadata"]["name"] for pod in world.placeholders() if not node_of(pod)]


def test_spot_has_no_capacity_so_the_next_rung_brings_it_and_the_node_pool_is_untouched(world: Sky) -> None:
    spec = ladder_fleet([SPOT, OTHER])
    world.provide(spec)
    before = node_pool(world.kube)
    world.weather({"capacityType": "spot"})
    ascent = Ascent(spec)
    assert types(ascent()) == ["g5.2xlarge"]
    first, second = ascent.told["attempts"]
    assert (first["result"], first["reason"], first["bought"]) == ("GivenUp", "InsufficientCapacity", [])
    assert "We currently do not have sufficient g5.xlarge capacity" in first["said"]
    assert (second["result"], len(second["bought"])) == ("Capacity", 1)
    assert second["difference"].startswith("at least +0.")
    assert ascent.told["lower"] is True
    assert "rung 2 of 2: g5.2xlarge on-demand" in ascent.told["sentence"]
    assert node_pool(world.kube) == before
    assert world.most == 1


def test_the_first_rung_has_capacity_and_nothing_else_is_tried(world: Sky) -> None:
    spec = ladder_fleet([SPOT, OTHER])
    world.provide(spec)
    ascent = Ascent(spec)
    assert types(ascent()) == ["g5.xlarge"]
    assert [each["result"] for each in ascent.told["attempts"]] == ["Capacity"]
    assert (ascent.told["lower"], ascent.told["sentence"]) == (False, "")


@pytest.mark.full
def test_capacity_that_comes_back_within_the_time_box_is_taken(world: Sky) -> None:
    spec = ladder_fleet([{**SPOT, "for": "40s"}, OTHER])
    world.provide(spec)
    world.weather({"until": 200})  # simulated: Karpenter has asked in vain, and asks again after 180
    ascent = Ascent(spec)
    assert types(ascent()) == ["g5.xlarge"]
    assert len(ascent.told["attempts"]) == 1


def test_every_rung_was_tried_in_vain_and_nothing_buys_any_more(world: Sky) -> None:
    spec = ladder_fleet([SPOT, {**OTHER, "for": "12s"}])
    world.provide(spec)
    world.weather({"code": "MaxSpotInstanceCountExceeded", "capacityType": "spot"}, {"capacityType": "on-demand"})
    ascent = Ascent(spec)
    with pytest.raises(GateRefused) as refused:
        ascent()
    assert refused.value.reason == ascent.ti.xcoms["failure"]["reason"] == "LadderExhausted"
    message = refused.value.message
    assert "0 of 1 node(s) came" in message
    assert "rung 1 (g5.xlarge spot, at most 1.01 USD/h)" in message
    assert "SpotQuotaExceeded" in message
    assert "rung 2 (g5.2xlarge on-demand, 1.21 USD/h)" in message
    assert "InsufficientCapacity" in message
    assert asking(world) == world.claims() == []
    assert world.most == 0


@pytest.mark.full
def test_the_next_rung_asks_only_for_what_is_missing(world: Sky) -> None:
    spec = ladder_fleet([{**SPOT, "capacityTypes": ["on-demand"]}, {**OTHER, "capacityTypes": ["spot"]}], wanted=2)
    world.provide(spec)
    world.faults.set("vcpu-quota:on-demand", {"code": "L-DB2E81BA", "value": 4})
    ascent = Ascent(spec)
    assert types(ascent()) == ["g5.2xlarge", "g5.xlarge"]
    first, second = ascent.told["attempts"]
    assert (first["result"], first["reason"], len(first["bought"])) == ("Partly", "VCPULimitExceeded", 1)
    assert (second["result"], len(second["bought"])) == ("Capacity", 1)
    assert world.most == 2
    # Each of the two nodes is held by a placeholder of its own rung.
    assert asking(world) == []
    assert len({node_of(pod) for pod in world.placeholders()}) == 2


@pytest.mark.full
@pytest.mark.parametrize("minimum", [1, None])
def test_fewer_nodes_than_wanted_are_enough_only_if_the_file_says_so(world: Sky, minimum: int | None) -> None:
    spec = ladder_fleet([{**SPOT, "capacityTypes": ["on-demand"]}], wanted=2, minimum=minimum)
    world.provide(spec)
    world.faults.set("vcpu-quota:on-demand", {"code": "L-DB2E81BA", "value": 4})
    ascent = Ascent(spec)
    if minimum is None:
        with pytest.raises(GateRefused, match="1 of 2 node"):
            ascent()
        # The node that came is held until the clean-up, and nothing else is asked for.
        assert len(world.claims()) == 1
        assert len(world.placeholders()) == 1
    else:
        assert types(ascent()) == ["g5.xlarge"]
        assert ascent.told["short"] == "1 of 2 wanted node(s), which capacity.minimum 1 permits"
        assert asking(world) == []


@pytest.mark.full
def test_a_claim_that_karpenter_cannot_launch_is_gone_before_the_next_rung_buys(
    world: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ladder_fleet([SPOT, OTHER])
    world.provide(spec)
    world.faults.set("launch-refused", {"code": "UnauthorizedOperation", "capacityType": "spot"})
    left: list[list[str]] = []
    asks = climbing.request_capacity

    def request(*args: Any, **kwargs: Any) -> Any:
        left.append([claim["metadata"]["name"] for claim in world.claims()])
        return asks(*args, **kwargs)

    monkeypatch.setattr(climbing, "request_capacity", request)
    ascent = Ascent(spec)
    assert types(ascent()) == ["g5.2xlarge"]
    assert ascent.told["attempts"][0]["reason"] == "TimeBoxOver"
    assert "Unauthorized" in ascent.told["attempts"][0]["said"]
    assert left == [[]]


class Killed(BaseException):
    """The process of the task is gone."""


def dies_in(patch: pytest.MonkeyPatch, module: Any, name: str, *, after: bool, times: int = 1) -> None:
    """The function kills the task at its beginning or its end, so often."""
    whole: Callable[..., Any] = getattr(module, name)
    left = [times]

    def dying(*args: Any, **kwargs: Any) -> Any:
        if after:
            whole(*args, **kwargs)
        if left[0]:
            left[0] -= 1
            raise Killed
        return None if after else whole(*args, **kwargs)

    patch.setattr(module, name, dying)


@pytest.mark.full
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("module", "name"),
    [(climbing, "settle"), (climbing, "heard"), (climbing, "request_capacity"), (rungs, "_remove_strays")],
    ids=["settle", "heard", "request", "strays"],
)
def test_a_task_that_is_killed_on_its_way_to_the_next_rung_continues_there(
    world: Sky, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, after: bool
) -> None:
    spec = ladder_fleet([SPOT, OTHER])
    world.provide(spec)
    world.weather({"capacityType": "spot", "code": "MaxSpotInstanceCountExceeded"})
    ascent = Ascent(spec)
    ascent.ask()
    with monkeypatch.context() as patch:
        dies_in(patch, module, name, after=after)
        with pytest.raises(Killed):
            ascent.come()
    ascent.ti.try_number = 2
    ascent.ti.xcoms.pop("ladder", None)  # Airflow removes the XComs of the try before
    assert types(ascent.come()) == ["g5.2xlarge"]
    assert [(each["rung"], each["result"]) for each in ascent.told["attempts"]] == [(1, "GivenUp"), (2, "Capacity")]
    assert world.most == 1
