from __future__ import annotations

import datetime
import json

import pytest

from gpu_fleet.core.catalogue import dated_prices, find, priced_regions
from gpu_fleet.core.catalogue.prices import FILE

#: Read on aws.amazon.com/ec2/pricing/on-demand, Linux, US West (Oregon), before the file was made.
OREGON = {
    "g4dn.xlarge": 0.526, "g4dn.metal": 7.824, "g5.xlarge": 1.006, "g5.12xlarge": 5.672, "g5.48xlarge": 16.288,
    "g6.xlarge": 0.8048, "g6.48xlarge": 13.3504, "g6e.12xlarge": 10.49264, "p4de.24xlarge": 27.44705,
    "p5.48xlarge": 55.04, "p5en.48xlarge": 63.296,
}  # fmt: skip


def test_oregons_prices_are_those_that_amazon_lists() -> None:
    prices = dated_prices("us-west-2")
    assert prices is not None
    assert {name: prices.hourly.get(name) for name in OREGON} == OREGON


@pytest.mark.parametrize("region", priced_regions())
def test_every_region_has_a_date_a_source_and_true_prices(region: str) -> None:
    prices = dated_prices(region)
    assert prices is not None
    datetime.date.fromisoformat(prices.date)
    assert " at " in prices.source
    assert all(find(name) is not None and 0.1 < usd < 500 for name, usd in prices.hourly.items())


def test_the_regions_that_offer_gpus_are_there_and_none_is_free() -> None:
    assert len(priced_regions()) >= 30
    assert {"us-east-1", "us-west-2", "eu-central-1", "ap-northeast-1", "us-gov-west-1"} <= set(priced_regions())
    assert all(entry["hourly"] for entry in json.loads(FILE.read_text())["regions"].values())


def test_china_is_left_out_because_its_prices_are_in_another_currency() -> None:
    assert json.loads(FILE.read_text())["currency"] == "USD"
    assert dated_prices("cn-north-1") is None
    assert dated_prices("cn-northwest-1") is None


def test_a_larger_size_of_a_family_costs_more_per_node() -> None:
    """Catches a slipped row: with the GPUs the price rises in every region."""
    for region in priced_regions():
        prices = dated_prices(region)
        assert prices is not None
        for family in ("g5", "g6", "g6e"):
            one, eight = prices.hourly.get(f"{family}.xlarge"), prices.hourly.get(f"{family}.48xlarge")
            assert one is None or eight is None or eight > 8 * one, (region, family)
