"""What AWS tells of prices: formats and refusals of the real services.

Sources: AWS Price List Service API reference, ``GetProducts``; aws/amazon-ec2-instance-selector
``test/static/GetProducts/m5_large.json`` and ``test/static/DescribeSpotPriceHistory/m5_large.json``, recorded answers;
aws/karpenter-provider-aws v1.14.1 ``pkg/providers/pricing/pricing.go``, which asks with these filters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sandbox.aws.client import Aws
from sandbox.aws.testing import RunningCloud

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = {
    "regionCode": "us-west-2", "instanceType": "g5.xlarge", "operatingSystem": "Linux", "preInstalledSw": "NA",
    "capacitystatus": "Used", "marketoption": "OnDemand", "tenancy": "Shared",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_faults(cloud: RunningCloud) -> Iterator[None]:
    yield
    cloud.settings.faults.clear()


def at(cloud: RunningCloud, region: str) -> Aws:
    account = cloud.account
    return Aws(cloud.shim.url, region, account.access_key_id, account.secret_access_key)


async def products(cloud: RunningCloud, region: str = "us-east-1", **changed: str | None) -> list[dict[str, Any]]:
    aws = at(cloud, region)
    wanted = {**QUESTION, **changed}
    filters = [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in wanted.items() if value]
    found = await aws.call("pricing", "get_products", ServiceCode="AmazonEC2", Filters=filters)
    aws.close()
    return [json.loads(text) for text in found["PriceList"]]


def usd(product: dict[str, Any]) -> str:
    [term] = product["terms"]["OnDemand"].values()
    [dimension] = term["priceDimensions"].values()
    assert dimension["unit"] == "Hrs"
    return str(dimension["pricePerUnit"]["USD"])


async def test_one_product_matches_the_filters_that_karpenter_uses(cloud: RunningCloud) -> None:
    [product] = await products(cloud)
    assert product["product"]["attributes"]["instanceType"] == "g5.xlarge"
    assert usd(product) == "1.0060000000"


async def test_with_fewer_filters_there_are_other_products_and_free_ones(cloud: RunningCloud) -> None:
    found = await products(cloud, capacitystatus=None, marketoption=None)
    assert len(found) > 1
    assert "0.0000000000" in {usd(product) for product in found}


async def test_bare_metal_is_listed_under_dedicated_tenancy(cloud: RunningCloud) -> None:
    assert await products(cloud, instanceType="g4dn.metal") == []
    [product] = await products(cloud, instanceType="g4dn.metal", tenancy="Dedicated")
    assert usd(product) == "7.8240000000"


async def test_an_unknown_type_has_no_product(cloud: RunningCloud) -> None:
    assert await products(cloud, instanceType="g99.xlarge") == []


async def test_there_is_no_endpoint_in_most_regions(cloud: RunningCloud) -> None:
    with pytest.raises(ClientError) as caught:
        await products(cloud, region="us-west-2")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert await products(cloud, region="eu-central-1")


async def test_who_lacks_the_permission_is_refused_as_by_the_service(cloud: RunningCloud) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": ["pricing:GetProducts"]})
    with pytest.raises(ClientError) as caught:
        await products(cloud)
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"


async def test_a_price_changes_or_is_listed_no_more(cloud: RunningCloud) -> None:
    cloud.settings.faults.set("list-price:a", {"type": "g5.xlarge", "usd": 2.5})
    [product] = await products(cloud)
    assert usd(product) == "2.5000000000"
    cloud.settings.faults.set("list-price:a", {"type": "g5.xlarge", "usd": None})
    assert await products(cloud) == []


async def spots(cloud: RunningCloud, *types: str) -> list[dict[str, Any]]:
    return await cloud.aws.paginate(
        "ec2",
        "describe_spot_price_history",
        "SpotPriceHistory[]",
        InstanceTypes=list(types),
        ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.now(UTC),
    )


async def test_spot_prices_are_per_zone_current_and_below_the_list_price(cloud: RunningCloud) -> None:
    found = await spots(cloud, "g5.xlarge", "p4d.24xlarge")
    assert {entry["InstanceType"] for entry in found} == {"g5.xlarge", "p4d.24xlarge"}
    of_g5 = {entry["AvailabilityZone"]: float(entry["SpotPrice"]) for entry in found if entry["InstanceType"][0] == "g"}
    assert set(of_g5) == {"us-west-2a", "us-west-2b", "us-west-2c"}
    assert len(set(of_g5.values())) == 3
    assert all(0 < price < 1.006 for price in of_g5.values())
    assert {entry["ProductDescription"] for entry in found} == {"Linux/UNIX"}
    assert all(datetime.now(UTC) - entry["Timestamp"] < timedelta(minutes=5) for entry in found)


async def test_a_spot_price_rises_in_one_zone(cloud: RunningCloud) -> None:
    cloud.settings.faults.set("spot-price:a", {"type": "g5.xlarge", "zone": "us-west-2b", "usd": 0.99})
    found = {entry["AvailabilityZone"]: entry["SpotPrice"] for entry in await spots(cloud, "g5.xlarge")}
    assert found["us-west-2b"] == "0.990000"
    assert found["us-west-2a"] != "0.990000"


async def test_ec2_knows_every_kind_of_type_with_nvidia_gpus(cloud: RunningCloud) -> None:
    """Those that it offers in the region; what it says of them is recorded from EC2 (moto 5.2.5), and owes nothing to
    the package."""
    names = ["g4dn.xlarge", "g5g.xlarge", "g6f.large", "g7e.48xlarge", "p5.48xlarge", "p6-b300.48xlarge"]
    found = await cloud.aws.paginate("ec2", "describe_instance_types", "InstanceTypes[]", InstanceTypes=names)
    said = {
        entry["InstanceType"]: (
            entry["GpuInfo"]["Gpus"][0]["Count"],
            entry["ProcessorInfo"]["SupportedArchitectures"],
            (entry["NetworkInfo"].get("EfaInfo") or {}).get("MaximumEfaInterfaces", 0),
        )
        for entry in found
    }
    assert said == {
        "g4dn.xlarge": (1, ["x86_64"], 0),
        "g5g.xlarge": (1, ["arm64"], 0),
        "g6f.large": (0, ["x86_64"], 0),
        "g7e.48xlarge": (8, ["x86_64"], 4),
        "p5.48xlarge": (8, ["x86_64"], 32),
        "p6-b300.48xlarge": (8, ["x86_64"], 16),
    }
    offered = await cloud.aws.paginate(
        "ec2",
        "describe_instance_type_offerings",
        "InstanceTypeOfferings[]",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": ["p6-b300.48xlarge", "p3.2xlarge"]}],
    )
    assert {(entry["InstanceType"], entry["Location"][-1]) for entry in offered} == {
        ("p6-b300.48xlarge", "a"), ("p6-b300.48xlarge", "b")
    }  # fmt: skip
