"""How fast a Deployment's or a DaemonSet's update may go (pkg/apis/apps/validation/validation.go, v1.36)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sandbox.apiserver.errors import Cause, forbidden_value, invalid_value, required
from sandbox.apiserver.jsontools import Obj, dig

_PERCENT = re.compile(r"[0-9]+%")
_PERCENT_TEXT = (
    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for "
    "validation is '[0-9]+%')"
)


def _amount(value: Any) -> int:
    """A number, or the number of a percentage; what is neither is refused elsewhere and counts as 0."""
    if isinstance(value, str):
        return int(value[:-1]) if _PERCENT.fullmatch(value) else int(value) if value.isdigit() else 0
    return value if isinstance(value, int) else 0


def _well_formed(value: Any, where: str) -> Iterator[Cause]:
    if isinstance(value, str):
        if not _PERCENT.fullmatch(value):
            yield invalid_value(where, value, _PERCENT_TEXT)
    elif isinstance(value, int) and value < 0:
        yield invalid_value(where, value, "must be greater than or equal to 0")


def _at_most_all(value: Any, where: str) -> Iterator[Cause]:
    if isinstance(value, str) and _PERCENT.fullmatch(value) and _amount(value) > 100:
        yield invalid_value(where, value, "must not be greater than 100%")


def daemon_set(new: Obj) -> Iterator[Cause]:
    rolling, where = dig(new, "spec", "updateStrategy", "rollingUpdate"), "spec.updateStrategy.rollingUpdate"
    if not isinstance(rolling, dict):
        return
    values = [(rolling.get(key), f"{where}.{key}") for key in ("maxUnavailable", "maxSurge")]
    for rule in (_well_formed, _at_most_all):
        for value, spot in values:
            yield from rule(value, spot)
    unavailable, surge = (_amount(value) != 0 for value, _ in values)
    if unavailable and surge:
        yield invalid_value(f"{where}.maxSurge", rolling["maxSurge"], "may not be set when maxUnavailable is non-zero")
    elif not unavailable and not surge:
        yield required(f"{where}.maxUnavailable", "cannot be 0 when maxSurge is 0")


def deployment(new: Obj) -> Iterator[Cause]:
    rolling, where = dig(new, "spec", "strategy", "rollingUpdate"), "spec.strategy.rollingUpdate"
    if not isinstance(rolling, dict):
        return
    if dig(new, "spec", "strategy", "type") == "Recreate":
        yield forbidden_value(where, "may not be specified when strategy `type` is 'Recreate'")
        return
    values = [(rolling.get(key), f"{where}.{key}") for key in ("maxUnavailable", "maxSurge")]
    for value, spot in values:
        yield from _well_formed(value, spot)
    if all(_amount(value) == 0 for value, _ in values):
        yield invalid_value(values[0][1], values[0][0], "may not be 0 when `maxSurge` is 0")
    yield from _at_most_all(*values[0])
