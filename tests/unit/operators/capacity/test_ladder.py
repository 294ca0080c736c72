"""A pool's ladder against the whole sandbox: what EC2 refuses, what is tried next, and what is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.kubernetes.kinds import NODE_POOL, ObjectRef
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from tests.unit.operators.capacity.climbs import POOL, Ascent, Sky, ladder_fleet, quick, sky

pytestmark = [pytest.mark.real_helm, pytest.mark.timeout(300)]

SPOT = {"capacityTypes": ["spot"], "for": "60s"}
ON_DEMAND = {"capacityTypes": ["on-demand"], "for": "40s"}


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
    return (kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"]


def test_spot_has_no_capacity_so_the_next_rung_brings_it_and_the_node_pool_is_untouched(world: Sky) -> None:
    spec = ladder_fleet([{"instanceTypes": ["g5.xlarge"], **SPOT}, {"instanceTypes": ["g5.2xlarge"], **ON_DEMAND}])
    world.provide(spec)
    before = node_pool(world.kube)
    world.weather({"capacityType": "spot"})
    ascent = Ascent(spec)
    found = ascent()
    assert [each["type"] for each in found["instances"].values()] == ["g5.2xlarge"]
    first, second = ascent.told["attempts"]
    assert (first["result"], first["reason"]) == ("GivenUp", "InsufficientCapacity")
    assert "We currently do not have sufficient g5.xlarge capacity" in first["said"]
    assert (second["result"], len(second["bought"])) == ("Capacity", 1)
    assert ascent.told["lower"] is True
    assert "rung 2 of 2: g5.2xlarge on-demand" in ascent.told["sentence"]
    assert node_pool(world.kube) == before
    assert world.most == 1
