"""Reads what AWS answers when it is asked for prices, and decides where to ask. Pure.

Which questions: as Karpenter asks them (aws/karpenter-provider-aws v1.14.1 pkg/providers/pricing/pricing.go,
``fetchOnDemandPricing``, ``UpdateSpotPricing``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: The product that an instance with Linux is, without licences: EC2's words in ``DescribeSpotPriceHistory``. In the
#: past the second one was that of instances in a VPC, as all are by now.
PRODUCTS = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")


def endpoint_region(region: str, offered: Sequence[str]) -> str | None:
    """The region of the Price List API to ask, nearest first; ``None``: the region's partition has none.

    AWS GovCloud has none, and the others one or a few, each with the prices of all regions of its partition (AWS
    Billing User Guide, 'Finding services and products using the AWS Price List Query API').

    :param offered: the regions of the partition that have an endpoint, as botocore lists them.
    """
    if not offered:
        return None
    near = {"ap": "ap-south-1", "eu": "eu-central-1"}.get(region.partition("-")[0], "us-east-1")
    return near if near in offered else sorted(offered)[-1]


def filters(region: str, instance_type: str) -> list[dict[str, str]]:
    """Filters of ``GetProducts`` for one type: Linux, nothing preinstalled, shared tenancy.

    Bare metal is listed under dedicated tenancy. Without ``marketoption`` a Capacity Block's price, which is 0, would
    be found, too.
    """
    wanted = {
        "regionCode": region,
        "instanceType": instance_type,
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
        "tenancy": "Dedicated" if ".metal" in instance_type else "Shared",
    }
    return [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in wanted.items()]


def on_demand(products: Iterable[str], instance_type: str) -> float | None:
    """USD per hour, of the products that ``GetProducts`` gives as JSON texts; ``None``: not listed, or in another
    currency.

    :raises ValueError: a product is no JSON.
    """
    for text in products:
        product = json.loads(text)
        if _at(product, "product", "attributes").get("instanceType") != instance_type:
            continue
        for term in _at(product, "terms", "OnDemand").values():
            for dimension in _at(term, "priceDimensions").values():
                usd = _number(_at(dimension, "pricePerUnit").get("USD"))
                if usd:
                    return usd
    return None


def spot(history: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Instance type -> zone -> USD per hour, the newest entry of each."""
    newest: dict[tuple[str, str], tuple[Any, float]] = {}
    for entry in history:
        usd, at = _number(entry.get("SpotPrice")), entry.get("Timestamp")
        key = (str(entry.get("InstanceType", "")), str(entry.get("AvailabilityZone", "")))
        if usd and at is not None and all(key) and (key not in newest or at > newest[key][0]):
            newest[key] = (at, usd)
    found: dict[str, dict[str, float]] = {}
    for (name, zone), (_, usd) in sorted(newest.items()):
        found.setdefault(name, {})[zone] = usd
    return found


def _at(value: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """A price as AWS writes it, a decimal in a text; anything else, or no price, is ``None``."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if 0 < found < float("inf") else None
