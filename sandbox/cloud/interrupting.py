"""The body of ``POST /interrupt``, field by field as :class:`sandbox.aws.interruptions.Wanted` describes them.

``instance`` or ``instances``, ``kind``, ``pool``, ``zone``, ``spot``, ``storm``, ``within``, ``action``, ``state``,
``times``, ``notice``, ``startsIn``, ``code``, ``skew``, ``malformed``, ``foreign``, ``silent``, ``completed``,
``impaired``, ``recovered``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

from sandbox.aws.interruptions import Wanted
from sandbox.aws.notices import RETIREMENT, Action, Check, Kind, Malformed

_Choice = TypeVar("_Choice", bound=StrEnum)
STATES = ("stopping", "stopped", "shutting-down", "terminated")
_FIELDS = frozenset(
    {"instance", "instances", "kind", "pool", "zone", "spot", "storm", "within", "action"}
    | {"state", "times", "notice", "startsIn", "code", "skew", "malformed", "foreign", "silent"}
    | {"completed", "impaired", "recovered"}
)


class BadRequest(ValueError):
    """The request's body is not what the route takes."""


def wanted(body: dict[str, Any]) -> Wanted:
    """
    :raises BadRequest: the body makes no sense; the message names the field.
    """
    if unknown := sorted(set(body) - _FIELDS):
        raise BadRequest(f"{unknown[0]} is no field; the fields are {', '.join(sorted(_FIELDS))}")
    instances = _instances(body)
    variant, check = body.get("malformed"), body.get("impaired")
    found = Wanted(
        kind=_choice(body.get("kind", Kind.SPOT), Kind, "kind"),
        instances=instances,
        pool=_text(body, "pool"),
        zone=_text(body, "zone"),
        spot=_flag(body, "spot"),
        storm=_count(body, "storm", 0),
        within=_number(body, "within", 0.0),
        action=_choice(body.get("action", Action.TERMINATE), Action, "action"),
        state=_text(body, "state") or "stopping",
        times=_count(body, "times", 1),
        notice=None if body.get("notice") is None else _number(body, "notice", 0.0),
        starts_in=None if body.get("startsIn") is None else _number(body, "startsIn", 0.0),
        code=_text(body, "code") or RETIREMENT,
        skew=_number(body, "skew", 0.0, least=None),
        malformed=None if variant is None else _choice(variant, Malformed, "malformed"),
        foreign=_flag(body, "foreign"),
        silent=_flag(body, "silent"),
        completed=_flag(body, "completed"),
        impaired=None if check is None else _choice(check, Check, "impaired"),
        recovered=_flag(body, "recovered"),
    )
    if not found.chooses:
        raise BadRequest("instance is missing; or choose by pool, zone, spot or storm")
    if instances and (found.pool or found.zone or found.spot or found.storm):
        raise BadRequest("instances are named and chosen; leave one of them out")
    if found.state not in STATES:
        raise BadRequest(f"state is one of {', '.join(STATES)}")
    return found


def _instances(body: dict[str, Any]) -> tuple[str, ...]:
    one, several = body.get("instance"), body.get("instances")
    listed = several if several is not None else [] if one is None else [one]
    if not isinstance(listed, list) or not all(isinstance(each, str) and each for each in listed):
        raise BadRequest("instance is a text, instances a list of texts")
    return tuple(dict.fromkeys(listed))


def _choice(value: Any, choices: type[_Choice], field: str) -> _Choice:
    try:
        return choices(str(value))
    except ValueError as error:
        raise BadRequest(f"{field} is one of {', '.join(choices)}") from error


def _text(body: dict[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{field} is not a text")
    return value or None


def _flag(body: dict[str, Any], field: str) -> bool:
    value = body.get(field, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{field} is neither true nor false")
    return value


def _number(body: dict[str, Any], field: str, default: float, least: float | None = 0.0) -> float:
    value = body.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or (least is not None and value < least):
        raise BadRequest(f"{field} is not a number of seconds" + ("" if least is None else " from 0 on"))
    return float(value)


def _count(body: dict[str, Any], field: str, default: int) -> int:
    value = body.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < min(default, 1):
        raise BadRequest(f"{field} is not a number from {min(default, 1)} on")
    return value
