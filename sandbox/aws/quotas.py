"""vCPU quotas of the account: what Service Quotas reports, and what EC2 refuses because of them.

moto has no quotas of EC2. Codes and names: AWS General Reference, 'Amazon EC2 endpoints and quotas'.

* ``vcpu-quota:ANY`` with ``{"code": "L-DB2E81BA", "value": 0}``: a quota has this value instead of :data:`PLENTY`;
* ``subnet-full`` with ``{"zone": "us-west-2a"}`` (every zone without one): the subnets have no free addresses.
"""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

from aiohttp import web

from sandbox.aws.signature import Request
from sandbox.faults import FaultBoard

QUOTA = "vcpu-quota"
SUBNET_FULL = "subnet-full"
#: vCPUs, of every quota without a fault.
PLENTY = 4096.0
NAMES = {
    "L-DB2E81BA": "Running On-Demand G and VT instances",
    "L-417A185B": "Running On-Demand P instances",
    "L-3819A6DF": "All G and VT Spot Instance Requests",
    "L-7212CCBC": "All P4, P3 and P2 Spot Instance Requests",
    "L-C4BD4855": "All P5 Spot Instance Requests",
}
_CODES = {
    ("g", "on-demand"): "L-DB2E81BA",
    ("vt", "on-demand"): "L-DB2E81BA",
    ("p", "on-demand"): "L-417A185B",
    ("g", "spot"): "L-3819A6DF",
    ("vt", "spot"): "L-3819A6DF",
    ("p", "spot"): "L-7212CCBC",
}
_FAMILY = re.compile(r"^([a-z]+)(\d+)")


def code_of(instance_type: str, capacity_type: str) -> str:
    """The quota that an instance counts against; empty for families without GPUs."""
    match = _FAMILY.match(instance_type)
    if match is None:
        return ""
    if match[0] == "p5" and capacity_type == "spot":
        return "L-C4BD4855"
    return _CODES.get((match[1], capacity_type), "")


def limit(faults: FaultBoard, code: str) -> float:
    """vCPUs that the account may run at a time."""
    for fault in faults.each(QUOTA):
        if fault.get("code") == code:
            return float(fault["value"])
    return PLENTY


def is_full(faults: FaultBoard, zone: str) -> bool:
    """Whether the subnets of a zone have no free addresses."""
    return any(fault.get("zone", zone) == zone for fault in faults.each(SUBNET_FULL))


def answer(faults: FaultBoard, seen: Request, action: str) -> web.Response:
    """Service Quotas' reply (API reference: GetServiceQuota)."""
    if action != "servicequotas:GetServiceQuota":
        return _reply(400, {"__type": "UnknownOperationException", "message": f"the sandbox has no {action}"})
    asked: dict[str, Any] = json.loads(seen.body or b"{}")
    code = str(asked.get("QuotaCode", ""))
    if asked.get("ServiceCode") != "ec2" or code not in NAMES:
        message = "The request failed because the specified quota does not exist."
        return _reply(400, {"__type": "NoSuchResourceException", "Message": message})
    quota = {
        "ServiceCode": "ec2",
        "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "QuotaCode": code,
        "QuotaName": NAMES[code],
        "Value": limit(faults, code),
        "Unit": "None",
        "Adjustable": True,
        "GlobalQuota": False,
    }
    return _reply(200, {"Quota": quota})


def _reply(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, text=json.dumps(body), content_type="application/x-amz-json-1.1")


def without_addresses(faults: FaultBoard, body: bytes) -> bytes:
    """A reply of DescribeSubnets in which full subnets say so."""
    if not faults.each(SUBNET_FULL):
        return body
    root = ElementTree.fromstring(body)  # noqa: S314 - moto's own reply
    ElementTree.register_namespace("", root.tag[1:].partition("}")[0])
    for item in root.iter():
        zone, free = (item.find(f"{{*}}{name}") for name in ("availabilityZone", "availableIpAddressCount"))
        if zone is not None and free is not None and is_full(faults, zone.text or ""):
            free.text = "0"
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
