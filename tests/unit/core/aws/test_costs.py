from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.aws.costs import HOURS_PER_MONTH, Price, PriceList, total, unknown_types

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
