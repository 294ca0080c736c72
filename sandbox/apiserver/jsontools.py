"""JSON values: copying, encoding, times, paths. Everything the server stores is plain JSON."""

from __future__ import annotations

import datetime as dt
import json
import random
import string
from collections.abc import Iterable
from typing import Any

Obj = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
# apimachinery pkg/util/rand: no vowels and no look-alikes, so that generated names spell nothing.
_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def dumps(value: Any) -> bytes:
    return _encode(value).encode()


def clone(value: Any) -> Any:
    """A deep copy of a JSON value (several times faster than :func:`copy.deepcopy`)."""
    if type(value) is dict:
        return {key: clone(item) if type(item) in (dict, list) else item for key, item in value.items()}
    if type(value) is list:
        return [clone(item) if type(item) in (dict, list) else item for item in value]
    return value


def now() -> str:
    """The present, as metav1.Time writes it: RFC 3339 in UTC with whole seconds."""
    return rfc3339(dt.datetime.now(dt.UTC))


def rfc3339(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def random_suffix(length: int = 5) -> str:
    return "".join(random.choice(_NAME_ALPHABET) for _ in range(length))


def random_hex(length: int = 32) -> str:
    return "".join(random.choice(string.hexdigits[:16]) for _ in range(length))


def dig(value: Any, *path: str) -> Any:
    """``value[a][b]…``, or ``None`` as soon as something is absent or no mapping."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def drop_nulls(value: Any) -> Any:
    """The value without null members: the server's typed objects do not distinguish null from absent."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def equal(left: Any, right: Any) -> bool:
    """JSON equality that keeps booleans and numbers apart (Python's ``True == 1``)."""
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
