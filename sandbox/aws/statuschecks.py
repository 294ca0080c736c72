"""``DescribeInstanceStatus``: moto says which instances there are, the status book what is known of their health.

Parameters, filters, defaults and elements as in the EC2 API Reference, DescribeInstanceStatus, InstanceStatus and
InstanceStatusEvent: without ``IncludeAllInstances`` running instances only, filters of different names are ANDed,
pages have 5 to 1000 instances, an event that is over is shown with a description that begins with ``[Completed]``.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.etree import ElementTree as ET

from sandbox.statusbook import Health, StatusBook

ACTION = "ec2:DescribeInstanceStatus"
_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
_LEAST, _MOST = 5, 1000
#: Parameters that moto is not asked with: it knows neither events nor pages.
_OURS = ("Filter.", "MaxResults", "NextToken")


class BadRequest(ValueError):
    """:ivar code: EC2's error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def question(text: str) -> bytes:
    """What moto is asked: which of the instances there are.

    :param text: the request's parameters, form-encoded.
    :raises BadRequest: EC2 would refuse the request.
    """
    asked = dict(parse_qsl(text))
    if "MaxResults" in asked and any(key.startswith("InstanceId.") for key in asked):
        raise BadRequest(
            "InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter maxResults"
        )
    kept = [(key, value) for key, value in parse_qsl(text) if not key.startswith(_OURS)]
    return urlencode(kept).encode()


def answer(text: str, found: bytes, book: StatusBook) -> bytes:
    """The reply.

    :param text: the request's parameters, form-encoded.
    :param found: moto's reply.
    :raises BadRequest: EC2 would refuse the request.
    """
    asked = dict(parse_qsl(text))
    filters = _filters(asked)
    listed = sorted(_instances(found), key=lambda each: each["instanceId"])
    rows = [(each, book.of(each["instanceId"])) for each in listed]
    kept = [row for row in rows if all(_passes(*row, name, values) for name, values in filters.items())]
    begin, size = _start(asked.get("NextToken")), _size(asked.get("MaxResults"))
    root = ET.Element("DescribeInstanceStatusResponse", xmlns=_NAMESPACE)
    ET.SubElement(root, "requestId").text = str(uuid.uuid4())
    listing = ET.SubElement(root, "instanceStatusSet")
    for instance, health in kept[begin : begin + size]:
        _write(ET.SubElement(listing, "item"), _shown(instance, health))
    if begin + size < len(kept):
        ET.SubElement(root, "nextToken").text = _token(begin + size)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root)


def refusal(error: BadRequest) -> bytes:
    root = ET.Element("Response")
    _write(ET.SubElement(ET.SubElement(root, "Errors"), "Error"), {"Code": error.code, "Message": str(error)})
    ET.SubElement(root, "RequestID").text = str(uuid.uuid4())
    return ET.tostring(root)


# --- filters -------------------------------------------------------------------------------------------------------

_FILTERS: dict[str, Callable[[Mapping[str, str], Health], Iterable[str]]] = {
    "availability-zone": lambda instance, _: [instance["availabilityZone"]],
    "event.code": lambda _, health: [event.code for event in health.events],
    "event.description": lambda _, health: [event.description for event in health.events],
    "event.instance-event-id": lambda _, health: [event.identifier for event in health.events],
    "event.not-before": lambda _, health: [_stamp(event.not_before) for event in health.events],
    "event.not-after": lambda _, health: [_stamp(event.not_after) for event in health.events],
    "instance-state-code": lambda instance, _: [instance["code"]],
    "instance-state-name": lambda instance, _: [instance["name"]],
    "instance-status.status": lambda instance, health: [_status(instance, health, "instance")],
    "instance-status.reachability": lambda instance, health: [_reachability(instance, health, "instance")],
    "system-status.status": lambda instance, health: [_status(instance, health, "system")],
    "system-status.reachability": lambda instance, health: [_reachability(instance, health, "system")],
}


def _filters(asked: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, name in asked.items():
        if not (key.startswith("Filter.") and key.endswith(".Name")):
            continue
        if name not in _FILTERS:
            raise BadRequest("InvalidParameterValue", f"The filter '{name}' is invalid")
        values = key.removesuffix("Name") + "Value."
        found.setdefault(name, []).extend(value for other, value in asked.items() if other.startswith(values))
    return found


def _passes(instance: Mapping[str, str], health: Health, name: str, values: Iterable[str]) -> bool:
    have = list(_FILTERS[name](instance, health))
    return any(fnmatchcase(each, value) for each in have for value in values)


# --- pages ---------------------------------------------------------------------------------------------------------


def _size(text: str | None) -> int:
    if text is None:
        return _MOST
    if not text.isdecimal() or int(text) < _LEAST:
        raise BadRequest("InvalidParameterValue", f"Value ( {text} ) for parameter maxResults is invalid.")
    return min(int(text), _MOST)


def _token(begin: int) -> str:
    return base64.urlsafe_b64encode(f"from:{begin}".encode()).decode()


def _start(token: str | None) -> int:
    if not token:
        return 0
    try:
        return int(base64.urlsafe_b64decode(token).decode().removeprefix("from:"))
    except (ValueError, binascii.Error) as error:
        raise BadRequest("InvalidNextToken", "The token is invalid.") from error


# --- elements ------------------------------------------------------------------------------------------------------


def _instances(found: bytes) -> list[dict[str, str]]:
    """Id, zone and state of each instance in moto's reply."""
    namespace = "{http://ec2.amazonaws.com/doc/2016-11-15}"
    rows = []
    for item in ET.fromstring(found).findall(f"{namespace}instanceStatusSet/{namespace}item"):  # noqa: S314  (moto's)
        elements = [*item, *item.iterfind(f"{namespace}instanceState/*")]
        rows.append({each.tag.removeprefix(namespace): each.text or "" for each in elements})
    return rows


def _shown(instance: Mapping[str, str], health: Health) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "instanceId": instance["instanceId"],
        "availabilityZone": instance["availabilityZone"],
        "instanceState": {"code": instance["code"], "name": instance["name"]},
    }
    if health.events:
        shown["eventsSet"] = [
            {
                "instanceEventId": event.identifier,
                "code": event.code,
                "description": event.description,
                "notBefore": _stamp(event.not_before),
                "notAfter": _stamp(event.not_after),
            }
            for event in health.events
        ]
    for check in ("instance", "system"):
        detail: dict[str, Any] = {"name": "reachability", "status": _reachability(instance, health, check)}
        since = health.since(check)
        if detail["status"] == "failed" and since is not None:
            detail["impairedSince"] = _stamp(since)
        details = [] if detail["status"] == "not-applicable" else [detail]
        shown[f"{check}Status"] = {"status": _status(instance, health, check), "details": details}
    return shown


def _status(instance: Mapping[str, str], health: Health, check: str) -> str:
    if instance["name"] != "running":  # checks run on running instances
        return "not-applicable"
    return "impaired" if health.since(check) is not None else "ok"


def _reachability(instance: Mapping[str, str], health: Health, check: str) -> str:
    status = _status(instance, health, check)
    return {"ok": "passed", "impaired": "failed"}.get(status, status)


def _write(parent: ET.Element, value: Mapping[str, Any]) -> None:
    for key, each in value.items():
        child = ET.SubElement(parent, key)
        if isinstance(each, Mapping):
            _write(child, each)
        elif isinstance(each, list):
            for item in each:
                _write(ET.SubElement(child, "item"), item)
        else:
            child.text = str(each)


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
