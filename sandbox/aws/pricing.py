"""What AWS tells of prices: the Price List API, which moto lacks, and spot prices, which moto answers with a constant.

* ``list-price:ANY`` with ``{"type": "g5.xlarge", "usd": 2.0}``: AWS has changed a price; ``null``: it lists none;
* ``spot-price:ANY`` with ``{"type": "g5.xlarge", "zone": "us-west-2a", "usd": 0.9}`` (every zone without one);
* ``price-list-slow`` with ``{"seconds": 30}``: the Price List API takes its time.

Formats: AWS Price List Service API reference, ``GetProducts`` (an item is a JSON text), and the recorded answer in
aws/amazon-ec2-instance-selector ``test/static/GetProducts/m5_large.json``; Amazon EC2 API reference,
``DescribeSpotPriceHistory``. Endpoints are in few regions only: AWS Billing User Guide, 'Finding services and products
using the AWS Price List Query API'.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from aiohttp import web

from sandbox.aws.listprices import ON_DEMAND, SPOT_SHARE
from sandbox.aws.signature import Request
from sandbox.faults import FaultBoard

LIST, SPOT, SLOW = "list-price", "spot-price", "price-list-slow"
#: Where the Price List API is (the partition ``aws``).
REGIONS = frozenset({"us-east-1", "eu-central-1", "ap-south-1"})
#: A zone's spot price above that of the zone before it.
_BY_ZONE = 0.05
_PRODUCTS = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")


def on_demand(faults: FaultBoard, instance_type: str) -> float | None:
    """US dollars an hour; ``None``: AWS lists no price."""
    for fault in faults.each(LIST):
        if fault.get("type") == instance_type:
            usd = fault.get("usd")
            return None if usd is None else float(usd)
    return ON_DEMAND.get(instance_type)


def spot(faults: FaultBoard, instance_type: str, zone: str) -> float | None:
    """US dollars an hour in a zone; ``None``: there is no spot capacity of it."""
    for fault in faults.each(SPOT):
        if fault.get("type") == instance_type and fault.get("zone", zone) == zone:
            return float(fault["usd"])
    listed = ON_DEMAND.get(instance_type)
    return None if listed is None else round(listed * SPOT_SHARE * (1 + _BY_ZONE * (ord(zone[-1]) - ord("a"))), 4)


async def answer(faults: FaultBoard, seen: Request, action: str, region: str) -> web.Response:
    """The Price List API's reply."""
    slow = faults.active(SLOW)
    if slow is not None:
        await asyncio.sleep(float(slow["seconds"]))
    if region not in REGIONS:
        return _reply(404, {"message": f"api.pricing.{region}.amazonaws.com does not exist"})
    if action != "pricing:GetProducts":
        return _reply(400, {"__type": "UnknownOperationException", "message": f"the sandbox has no {action}"})
    asked: dict[str, Any] = json.loads(seen.body or b"{}")
    if asked.get("ServiceCode") != "AmazonEC2":
        return _reply(400, {"__type": "NotFoundException", "Message": "Invalid ServiceCode"})
    wanted = {item["Field"]: item["Value"] for item in asked.get("Filters", []) if item["Type"] == "TERM_MATCH"}
    name = wanted.get("instanceType", "")
    usd = on_demand(faults, name)
    found = [] if usd is None else [product for product in _products(name, usd, wanted) if _matches(product, wanted)]
    return _reply(200, {"FormatVersion": "aws_v1", "PriceList": [json.dumps(product) for product in found]})


def _products(name: str, usd: float, wanted: dict[str, str]) -> list[dict[str, Any]]:
    """As AWS has it: one product per tenancy, system, licence and state of capacity; those that a question without
    enough filters would find, too."""
    region = wanted.get("regionCode", "us-east-1")
    # tenancy, operating system, preinstalled, capacity, market
    kinds = (
        (("Dedicated" if ".metal" in name else "Shared", "Linux", "NA", "Used", "OnDemand"), usd),
        (("Shared", "Linux", "NA", "UnusedCapacityReservation", "OnDemand"), usd),
        (("Shared", "Linux", "NA", "AllocatedCapacityReservation", "OnDemand"), 0.0),
        (("Shared", "Linux", "NA", "Used", "CapacityBlock"), 0.0),
        (("Shared", "Windows", "NA", "Used", "OnDemand"), usd * 1.5),
        (("Shared", "Linux", "SQL Std", "Used", "OnDemand"), usd * 2),
        (("Dedicated", "Linux", "NA", "Used", "OnDemand"), usd * 1.1),
    )
    keys = ("tenancy", "operatingSystem", "preInstalledSw", "capacitystatus", "marketoption")
    return [
        _product({"instanceType": name, "regionCode": region, **dict(zip(keys, kind, strict=True))}, price)
        for kind, price in kinds[: 1 if ".metal" in name else None]
    ]


def _product(attributes: dict[str, str], usd: float) -> dict[str, Any]:
    sku = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(attributes, sort_keys=True)).hex[:16].upper()
    term = f"{sku}.JRTCKXETXF"
    dimension = {
        "unit": "Hrs",
        "beginRange": "0",
        "endRange": "Inf",
        "description": f"${usd} per {attributes['marketoption']} {attributes['instanceType']} Instance Hour",
        "pricePerUnit": {"USD": f"{usd:.10f}"},
    }
    return {
        "product": {"productFamily": "Compute Instance", "sku": sku, "attributes": attributes},
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {term: {"sku": sku, "priceDimensions": {f"{term}.6YS6EN2CT7": dimension}}}},
        "version": "20260801000000",
    }


def _matches(product: dict[str, Any], wanted: dict[str, str]) -> bool:
    attributes = product["product"]["attributes"]
    return all(attributes.get(field) == value for field, value in wanted.items() if field in attributes)


def priced(faults: FaultBoard, body: bytes) -> bytes:
    """Moto's reply of ``DescribeSpotPriceHistory`` with prices, for each product description; moto's have one constant
    and a time long past."""
    root = ElementTree.fromstring(body)  # noqa: S314 - moto's own reply
    namespace = root.tag[1:].partition("}")[0]
    ElementTree.register_namespace("", namespace)
    history = root.find("{*}spotPriceHistorySet")
    if history is None:
        return body
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    for item in list(history):
        values = {child.tag.rpartition("}")[2]: child for child in item}
        usd = spot(faults, values["instanceType"].text or "", values["availabilityZone"].text or "")
        if usd is None:
            history.remove(item)
            continue
        values["spotPrice"].text = f"{usd:.6f}"
        values["productDescription"].text = _PRODUCTS[0]
        values["timestamp"].text = now
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _reply(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, text=json.dumps(body), content_type="application/x-amz-json-1.1")
