"""What a pool's protecting task hands on survives the XCom, under the keys that runs under way have."""

from __future__ import annotations

import json

import pytest

from gpu_fleet.core.validation.chosen import ChosenNodes

CHOSEN = ChosenNodes(
    nodes=["n-a"],
    physical=4,
    replicas=2,
    untested=["n-b"],
    idle="no node takes probes: cordoned: n-c",
    blamed=["n-b"],
    drifted={"n-d": ["amiAlias"]},
    node_claims=["a", "b"],
    claims={"a": "n-a"},
    protected=["n-a"],
    instances={"n-a": {"id": "i-1", "capacityType": "spot"}},
)


def test_it_survives_the_xcom() -> None:
    assert ChosenNodes.from_json(json.loads(json.dumps(CHOSEN.to_json()))) == CHOSEN


def test_its_keys_are_those_that_runs_under_way_have_written() -> None:
    assert list(CHOSEN.to_json()) == [
        *("nodes", "untested", "idle", "blamed", "drifted", "nodeClaims", "claims", "physical", "replicas"),
        *("protected", "instances"),
    ]


def test_an_earlier_version_wrote_fewer_keys() -> None:
    value = {"nodes": ["n-a"], "physical": 1, "replicas": 1}
    assert ChosenNodes.from_json(value) == ChosenNodes(["n-a"], 1, 1, [], "", [], {}, [], {}, [], {})


@pytest.mark.parametrize("key", ["nodes", "physical", "replicas"])
def test_without_nodes_or_gpus_it_is_no_choice(key: str) -> None:
    value = CHOSEN.to_json()
    del value[key]
    with pytest.raises(KeyError):
        ChosenNodes.from_json(value)
