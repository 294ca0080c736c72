"""Asks AWS for prices: the Price List API for on-demand, EC2 for spot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from gpu_fleet.core.aws.price_answers import PRODUCTS, endpoint_region, filters, on_demand, spot
from gpu_fleet.core.errors import Invalid
from gpu_fleet.hooks.aws.endpoints import price_list_regions
from gpu_fleet.hooks.aws.session import AwsSession, aws_session

#: What the identity needs; both are optional.
LIST_ACTION, SPOT_ACTION = "pricing:GetProducts", "ec2:DescribeSpotPriceHistory"


def price_list_session(connection: str | None, region: str) -> AwsSession | None:
    """A session at the Price List API that has the region's prices; ``None``: there is none in the partition."""
    found = endpoint_region(region, price_list_regions(region))
    return None if found is None else aws_session(connection, found)


def list_price(session: AwsSession, region: str, instance_type: str) -> float | None:
    """USD per hour, on-demand; ``None``: AWS lists none in that currency.

    :raises GpuFleetError: typed, as all calls of the session.
    """
    products = session.paginate(
        "pricing",
        "get_products",
        "PriceList",
        ServiceCode="AmazonEC2",
        Filters=filters(region, instance_type),
        FormatVersion="aws_v1",
    )
    try:
        return on_demand(map(str, products), instance_type)
    except ValueError as error:
        raise Invalid(f"the Price List API's answer about {instance_type} cannot be read: {error}") from error


def spot_prices(session: AwsSession, instance_types: Sequence[str]) -> dict[str, dict[str, float]]:
    """Instance type -> zone -> USD per hour, now. With the present as the start, EC2 gives the prices that hold (EC2
    API reference, ``DescribeSpotPriceHistory``).

    :raises GpuFleetError: typed.
    """
    history: Iterable[dict[str, object]] = session.paginate(
        "ec2",
        "describe_spot_price_history",
        "SpotPriceHistory",
        InstanceTypes=list(instance_types),
        ProductDescriptions=list(PRODUCTS),
        StartTime=datetime.now(UTC),
    )
    return spot(history)
