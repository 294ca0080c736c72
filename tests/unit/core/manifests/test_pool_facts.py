"""Limits that hold within a scheduling pass, and weights by price per GPU."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.aws.hardware import Hardware
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.manifests.pool_facts import UNKNOWN, PoolFacts, limits_of, weights
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.cluster import pool_facts as pool_facts_of_cluster
from gpu_fleet.hooks.cluster import prices as live_prices
from gpu_fleet.hooks.cluster.prices import LIVE_VARIABLE
from gpu_fleet.hooks.files.prices import load_prices
from tests.unit.core.specs import demo_mapping, demo_spec

PRICES = PriceList("us-west-2", "2026-01-01", "x", {"g5.xlarge": 1.0, "g6.xlarge": 0.8, "p4d.24xlarge": 22.0})


def pools(*described: dict[str, Any]) -> ClusterSpec:
    return ClusterSpec.model_validate({**demo_mapping(), "nodePools": list(described)})


def pool(name: str, instance_type: str = "g5.xlarge", replicas: int = 1, **more: Any) -> dict[str, Any]:
    sharing = {"mode": "timeSlicing", "replicas": replicas} if replicas > 1 else {"mode": "exclusive"}
    return {"name": name, "instanceTypes": [instance_type], "sharing": sharing, **more}


# --- limits -----------------------------------------------------------------------------------------------------------


def test_beside_nodes_stands_a_limit_that_karpenter_counts_within_a_pass() -> None:
    assert limits_of(demo_spec().pool("whole-a100"), UNKNOWN) == {"nodes": "2", "cpu": "192"}


def test_the_largest_type_decides() -> None:
    """Karpenter subtracts the largest type that a planned node may become."""
    spec = demo_spec(nodePools__0__instanceTypes=["g5.xlarge", "g5.4xlarge"])
    assert limits_of(spec.pool("shared-a10g"), UNKNOWN) == {"nodes": "4", "cpu": "64"}


def test_ec2s_figure_comes_before_the_sizes_name() -> None:
    facts = PoolFacts(Hardware(1, {}, {}, vcpus={"g5.xlarge": 6}))
    assert limits_of(demo_spec().pool("shared-a10g"), facts) == {"nodes": "4", "cpu": "24"}


def test_a_size_that_says_nothing_has_the_limit_on_nodes_alone() -> None:
    spec = demo_spec(nodePools__0__instanceTypes=["g9.metal"])
    assert limits_of(spec.pool("shared-a10g"), UNKNOWN) == {"nodes": "4"}


def test_a_pool_that_wants_no_node_may_buy_none() -> None:
    spec = demo_spec(nodePools__0__limits=..., nodePools__0__wantedNodes=0)
    assert limits_of(spec.pool("shared-a10g"), UNKNOWN) == {"nodes": "0", "cpu": "0"}


def test_unless_the_file_says_how_many() -> None:
    spec = demo_spec(nodePools__0__limits={"nodes": 3}, nodePools__0__wantedNodes=0)
    assert limits_of(spec.pool("shared-a10g"), UNKNOWN)["nodes"] == "3"


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_cheapest_gpu_is_bought_first_and_the_dearest_pool_has_no_weight() -> None:
    """In the demo a pod with the usual toleration and one GPU bought a p4d.24xlarge: 'whole' is the last name."""
    spec = demo_spec()
    assert weights(spec, load_prices(spec.region)) == {"shared-a10g": 1, "whole-a100": None}
    facts = PoolFacts(prices=load_prices(spec.region))
    assert build("node_pool", spec, pool="shared-a10g", facts=facts)[0]["spec"]["weight"] == 1
    assert "weight" not in build("node_pool", spec, pool="whole-a100", facts=facts)[0]["spec"]


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b", "a")])
def test_neither_order_nor_names_decide(names: tuple[str, str, str]) -> None:
    dear, cheap, middle = names
    spec = pools(pool(dear, "p4d.24xlarge"), pool(cheap, "g6.xlarge"), pool(middle))
    assert weights(spec, PRICES) == {dear: None, cheap: 2, middle: 1}


def test_what_has_no_price_is_dearer_than_what_has_one() -> None:
    spec = pools(pool("unknown", "g6e.xlarge"), pool("known", "p4d.24xlarge"))
    assert weights(spec, PRICES) == {"unknown": None, "known": 1}


def test_without_any_price_fewer_gpus_then_fewer_vcpus_come_first() -> None:
    spec = pools(pool("eight", "p4d.24xlarge"), pool("large", "g5.8xlarge"), pool("small", "g5.xlarge"))
    assert weights(spec, PriceList.unknown("mars-1")) == {"eight": None, "large": 1, "small": 2}


def test_of_equal_gpus_the_shared_one_comes_first() -> None:
    assert weights(pools(pool("whole"), pool("shared", replicas=4)), PRICES) == {"whole": None, "shared": 1}


def test_the_last_word_has_the_name_so_that_equal_pools_do_not_change_places() -> None:
    assert weights(pools(pool("b"), pool("a")), PRICES) == weights(pools(pool("a"), pool("b")), PRICES)
    assert weights(pools(pool("b"), pool("a")), PRICES) == {"a": 1, "b": None}


def test_a_weight_in_the_file_stands() -> None:
    spec = pools(pool("dear", "p4d.24xlarge", weight=50), pool("cheap", "g6.xlarge"))
    assert weights(spec, PRICES) == {"dear": 50, "cheap": 1}


def test_one_pool_has_no_weight() -> None:
    """A NodePool of others without a weight is not passed over for it."""
    assert weights(pools(pool("only")), PRICES) == {"only": None}


def test_what_aws_lists_today_does_not_reorder_the_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """The applied weight follows from the region's file, whatever else is known, and whether AWS answers or not."""
    spec = demo_spec()
    monkeypatch.setattr(pool_facts_of_cluster, "hardware", lambda *_: None)
    monkeypatch.delenv(LIVE_VARIABLE)

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("AWS was asked for prices")

    monkeypatch.setattr(live_prices, "list_price", asked)
    monkeypatch.setattr(live_prices, "spot_prices", asked)
    facts = pool_facts_of_cluster.pool_facts(spec, spec.node_pools[0])
    assert facts.prices == load_prices(spec.region)
    assert facts.prices is not None
    assert facts.prices.rest is None
    assert facts.prices.date == "2025-06-05"


def test_a_region_without_a_file_of_its_own_keeps_the_order_that_it_had() -> None:
    """Although the package's dated file has prices there."""
    assert PriceList.dated("eu-west-1").instance("g5.xlarge").usd is not None
    spec = pools(pool("eight", "p4d.24xlarge"), pool("one", "g5.xlarge"))
    assert weights(spec, load_prices("eu-west-1")) == weights(spec, PriceList.unknown("eu-west-1"))
