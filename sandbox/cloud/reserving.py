"""The bodies of ``POST /reservations`` and ``POST /reservations/<id>``: capacity reservations and Capacity Blocks.

``instanceType``, ``zone``, ``count``, ``type`` (``default`` or ``capacity-block``), ``startsIn`` and ``endsIn`` (real
seconds from now; without ``endsIn`` it does not end), ``owner``, ``shared``, ``platform``, ``tenancy``, ``match``,
``interruptible``, ``state`` (whatever the time is), ``tags``, ``id``. A change takes ``startsIn``, ``endsIn``,
``count`` and ``state``.
"""

from __future__ import annotations

from typing import Any

from sandbox.cloud.interrupting import BadRequest

_TEXTS = ("id", "instanceType", "zone", "type", "owner", "platform", "tenancy", "match", "state")
_NUMBERS, _FLAGS = ("startsIn", "endsIn"), ("shared", "interruptible")
_FIELDS = frozenset({*_TEXTS, *_NUMBERS, *_FLAGS, "count", "tags"})
_CHANGES = frozenset({"startsIn", "endsIn", "count", "state"})
_KINDS = ("default", "capacity-block")


def wanted(body: dict[str, Any], *, change: bool = False) -> dict[str, Any]:
    """The body, checked.

    :raises BadRequest: it makes no sense; the message names the field.
    """
    allowed = _CHANGES if change else _FIELDS
    if unknown := sorted(set(body) - allowed):
        raise BadRequest(f"{unknown[0]} is no field; the fields are {', '.join(sorted(allowed))}")
    for field in _TEXTS:
        if field in body and not isinstance(body[field], str):
            raise BadRequest(f"{field} is not a text")
    for field in _NUMBERS:
        value = body.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadRequest(f"{field} is not a number of seconds")
    for field in _FLAGS:
        if not isinstance(body.get(field, False), bool):
            raise BadRequest(f"{field} is neither true nor false")
    count = body.get("count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise BadRequest("count is not a number of instances")
    tags = body.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(each, str) for each in tags.values()):
        raise BadRequest("tags is not an object of texts")
    if change:
        return dict(body)
    if not body.get("instanceType") or not body.get("zone"):
        raise BadRequest("instanceType and zone are texts")
    if body.get("type", "default") not in _KINDS:
        raise BadRequest(f"type is one of {', '.join(_KINDS)}")
    if body.get("type") == "capacity-block" and body.get("endsIn") is None:
        raise BadRequest("a Capacity Block has an end; endsIn is missing")
    return {"count": count, **body}
