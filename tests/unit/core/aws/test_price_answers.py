from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from gpu_fleet.core.aws.price_answers import endpoint_region, filters, on_demand, spot
from gpu_fleet.hooks.aws.endpoints import price_list_regions


def product(usd: Any, name: str = "g5.xlarge", currency: str = "USD") -> str:
    return json.dumps(
        {
            "product": {"attributes": {"instanceType": name}},
            "terms": {"OnDemand": {"a": {"priceDimensions": {"b": {"pricePerUnit": {currency: usd}}}}}},
        }
    )


@pytest.mark.parametrize(
    ("region", "asked"),
    [
        ("us-west-2", "us-east-1"),
        ("sa-east-1", "us-east-1"),
        ("eu-north-1", "eu-central-1"),
        ("ap-southeast-5", "ap-south-1"),
        ("af-south-1", "us-east-1"),
        ("cn-north-1", "cn-northwest-1"),
        ("us-gov-west-1", None),
        ("eusc-de-east-1", "eusc-de-east-1"),
        ("mars-north-1", None),
    ],
)
def test_the_price_list_is_asked_where_it_has_an_endpoint(region: str, asked: str | None) -> None:
    """By botocore's own list, of which AWS's documentation has the first three."""
    assert endpoint_region(region, price_list_regions(region)) == asked


def test_bare_metal_is_asked_for_under_dedicated_tenancy() -> None:
    assert {"Type": "TERM_MATCH", "Field": "tenancy", "Value": "Dedicated"} in filters("us-west-2", "g4dn.metal")
    assert {"Type": "TERM_MATCH", "Field": "tenancy", "Value": "Shared"} in filters("us-west-2", "g5.xlarge")


@pytest.mark.parametrize(
    ("products", "usd"),
    [
        ([], None),
        ([product("1.0060000000")], 1.006),
        ([product("0.0000000000"), product("1.0060000000")], 1.006),
        ([product("5.0", name="g5.2xlarge"), product("1.006")], 1.006),
        ([product("7.1", currency="CNY")], None),
        ([product("NaN")], None),
        ([product("inf")], None),
        ([product("-1")], None),
        ([product(None)], None),
        (["{}", "[]", '"x"', '{"product": 1, "terms": []}'], None),
    ],
)
def test_only_a_true_price_is_read(products: list[str], usd: float | None) -> None:
    assert on_demand(products, "g5.xlarge") == usd


def test_an_answer_that_is_no_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        on_demand(["{"], "g5.xlarge")


def test_of_each_zone_the_newest_spot_price_counts() -> None:
    def entry(price: str, zone: str, minute: int) -> dict[str, Any]:
        at = datetime(2026, 11, 30, 10, minute, tzinfo=UTC)
        return {"InstanceType": "g5.xlarge", "AvailabilityZone": zone, "SpotPrice": price, "Timestamp": at}

    history = [
        entry("0.5", "a", 1), entry("0.4", "a", 2), entry("0.6", "a", 0), entry("0.7", "b", 5), entry("x", "c", 1),
        {"SpotPrice": "1"}, {},
    ]  # fmt: skip
    assert spot(history) == {"g5.xlarge": {"a": 0.4, "b": 0.7}}
