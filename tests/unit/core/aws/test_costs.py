from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.aws.costs import HOURS_PER_MONTH, Price, PriceList, SpotPrices, total, unknown_types

VALUE: dict[str, Any] = {
    "region": "us-west-2",
    "date": "2025-06-05",
    "source": "a page",
    "hourly": {"g5.xlarge": 1.006},
    "volumes": {"gp3": 0.08},
}
PRICES = PriceList.from_mapping(VALUE)


def test_spot_costs_at_most_the_list_price() -> None:
    assert str(PRICES.instance("g5.xlarge")) == "1.01 USD/h"
    assert str(PRICES.instance("g5.xlarge", "spot")) == "at most 1.01 USD/h"
    assert PRICES.instance("g5.xlarge", "spot").usd == 1.006


def test_what_is_not_listed_is_unknown_not_free() -> None:
    assert PRICES.instance("x.large").usd is None
    assert str(PRICES.instance("x.large")) == "unknown price"
    assert PRICES.volume("io2", 100).usd is None
    assert unknown_types(PRICES, ["g5.xlarge", "b.x", "a.x", "b.x"]) == ["a.x", "b.x"]


def test_a_volume_is_paid_by_the_month() -> None:
    assert PRICES.volume("gp3", 100).usd == pytest.approx(8.0 / HOURS_PER_MONTH)


@pytest.mark.parametrize(
    ("prices", "usd", "at_most"),
    [
        ([], 0.0, False),
        ([Price(1.0), Price(2.0)], 3.0, False),
        ([Price(1.0), Price(2.0, at_most=True)], 3.0, True),
        ([Price(1.0), Price(None)], 1.0, False),
        ([Price(None), Price(None)], None, False),
    ],
)
def test_a_sum_counts_what_is_known(prices: list[Price], usd: float | None, at_most: bool) -> None:
    assert total(prices) == Price(usd, at_most)


@pytest.mark.parametrize("key", ["region", "date", "source", "hourly"])
def test_a_list_without_its_origin_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        PriceList.from_mapping({k: v for k, v in VALUE.items() if k != key})


@pytest.mark.parametrize("price", [0, -1, "1.0", None, True])
def test_a_price_is_a_positive_number(price: Any) -> None:
    with pytest.raises(ValueError, match="is not a price"):
        PriceList.from_mapping({**VALUE, "hourly": {"g5.xlarge": price}})


def test_a_report_names_date_and_source() -> None:
    assert "2025-06-05" in PRICES.describe()
    assert "a page" in PRICES.describe()
    assert PriceList.unknown("mars-1").instance("g5.xlarge").usd is None
    assert "no price list" in PriceList.unknown("mars-1").describe()


DATED = PriceList("us-west-2", "2026-01-21", "a file", {"g5.xlarge": 9.0, "g6.xlarge": 0.8}, {"gp3": 9.0})
TODAY = PriceList("us-west-2", "2026-11-30", "AWS", {"g5.xlarge": 1.1})
SPOT = SpotPrices("10:42 UTC on 2026-11-30", {"g5.xlarge": {"us-west-2a": 0.4, "us-west-2b": 0.5}})


def test_each_price_has_the_date_of_the_first_layer_that_knows_it() -> None:
    prices = TODAY.before(PRICES).before(DATED)
    origins = {
        prices.instance("g5.xlarge").origin[0]: prices.instance("g5.xlarge").usd,
        prices.instance("g6.xlarge").origin[0]: prices.instance("g6.xlarge").usd,
        prices.volume("gp3", HOURS_PER_MONTH).origin[0]: prices.volume("gp3", HOURS_PER_MONTH).usd,
    }
    assert origins == {
        "List prices of 2026-11-30 for us-west-2: AWS": 1.1,
        "List prices of 2026-01-21 for us-west-2: a file": 0.8,
        "List prices of 2025-06-05 for us-west-2: a page": pytest.approx(0.08),
    }


def test_a_sum_names_every_origin_once_and_no_other() -> None:
    prices = replace(TODAY.before(DATED), spot=SPOT)
    cost = total([prices.instance("g5.xlarge"), prices.instance("g5.xlarge"), prices.instance("g5.xlarge", "spot")])
    said = prices.describe(cost)
    assert said == (
        "List prices of 2026-11-30 for us-west-2: AWS. Spot prices of 10:42 UTC on 2026-11-30: EC2, "
        "DescribeSpotPriceHistory"
    )
    assert cost.usd == pytest.approx(1.1 + 1.1 + 0.5)
    assert cost.at_most


def test_a_spot_price_of_the_zone_is_no_bound() -> None:
    prices = replace(TODAY, spot=SPOT)
    assert prices.instance("g5.xlarge", "spot", "us-west-2a") == Price(0.4)
    assert prices.instance("g5.xlarge", "spot") == Price(0.5, at_most=True)
    assert prices.instance("g5.xlarge", "reserved") == Price(1.1, at_most=True)
    assert SpotPrices("x", {"g5.xlarge": {"us-west-2a": 0.4}}).price("g5.xlarge") == Price(0.4)


def test_what_could_not_be_asked_is_said_with_every_sum() -> None:
    prices = replace(DATED, gaps=("AWS did not give its list prices: pricing:GetProducts is not allowed",))
    assert prices.describe(prices.instance("g6.xlarge")).endswith("pricing:GetProducts is not allowed")
    assert "pricing:GetProducts is not allowed" in prices.describe(prices.instance("odd.xlarge"))


def test_a_sum_of_unknown_prices_is_said_to_be_unknown() -> None:
    unknown = PriceList.unknown("mars-1")
    cost = total([unknown.instance("g5.xlarge")])
    assert str(cost) == "unknown price"
    assert unknown.describe(cost) == "Prices: no price list for this region."
    assert "no list price" in DATED.describe(total([DATED.instance("odd.xlarge")]))


def test_the_dated_file_is_a_price_list_of_its_region() -> None:
    prices = PriceList.dated("us-east-1")
    assert prices.instance("p5.48xlarge").usd == 55.04
    assert prices.date == "2026-07-20"
    assert PriceList.dated("cn-north-1").instance("g5.xlarge").usd is None


def test_prices_of_a_contract_say_that_they_are_fixed() -> None:
    assert PriceList.from_mapping({**VALUE, "fixed": True}).fixed
    assert not PRICES.fixed
    with pytest.raises(ValueError, match="neither true nor false"):
        PriceList.from_mapping({**VALUE, "fixed": "yes"})
