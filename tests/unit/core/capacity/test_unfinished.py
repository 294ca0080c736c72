"""Which nodes of a failed run are paid for and will not go by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_fleet.core.aws.costs import PriceList, SpotPrices
from gpu_fleet.core.capacity.unfinished import unfinished_message, unfinished_nodes
from tests.unit.core.cluster_objects import POOL, claim

PRICES = PriceList("us-west-2", "2025-06-05", "a page", {"g5.xlarge": 1.0})


@pytest.mark.parametrize(
    ("waiting", "leaving", "named"),
    [
        (("Launched", "LaunchFailed", ""), False, False),
        (("Registered", "NodeNotFound", "Node not registered with cluster"), False, True),
        (("Initialized", "ResourceNotRegistered", "no GPU"), False, True),
        (("Initialized", "ResourceNotRegistered", "no GPU"), True, False),
        (None, False, False),
    ],
    ids=["has no instance", "has not joined", "has no GPUs", "goes", "initialized: consolidated when idle"],
)
def test_unfinished(waiting: tuple[str, str, str] | None, leaving: bool, named: bool) -> None:
    found = unfinished_nodes([claim("a", waiting=waiting, deleting=leaving)], POOL, PRICES)
    assert [each.claim for each in found] == (["a"] if named else [])


def test_a_type_without_a_price_is_named_all_the_same() -> None:
    item = claim("a", waiting=("Initialized", "NodeNotReady", "Node status is NotReady"))
    item["metadata"]["labels"]["node.kubernetes.io/instance-type"] = "p9.huge"
    (found,) = unfinished_nodes([item], POOL, PRICES)
    assert found.to_json()["usdPerHour"] is None
    assert "p9.huge" in str(found)
    assert "NodeNotReady" in str(found)


def test_a_spot_node_costs_what_its_zone_asks_now_and_the_message_says_when_that_was() -> None:
    item = claim("a", waiting=("Initialized", "NodeNotReady", "Node status is NotReady"))
    labels = {"karpenter.sh/capacity-type": "spot", "topology.kubernetes.io/zone": "us-west-2a"}
    item["metadata"]["labels"] |= {**labels, "node.kubernetes.io/instance-type": "g5.xlarge"}
    prices = replace(PRICES, spot=SpotPrices("10:42 UTC on 2026-11-30", {"g5.xlarge": {"us-west-2a": 0.4}}))
    found = unfinished_nodes([item], POOL, prices)
    message = unfinished_message("demo", found, prices)
    assert "(g5.xlarge, 0.40 USD/h;" in message
    assert message.endswith("Spot prices of 10:42 UTC on 2026-11-30: EC2, DescribeSpotPriceHistory")
