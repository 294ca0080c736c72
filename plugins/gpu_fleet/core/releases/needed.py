"""Values that every deployed revision must have, because living nodes depend on them. Pure.

Needed values are a part of a chart's values. A mapping's keys and a list's items must be present; the value of a key
may differ: what was proven once is better than what would be written today.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any


def lacking(values: Mapping[str, Any], needed: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted paths of what the values lack, list items as ``path: item``."""
    return tuple(_lacking(values, needed, ""))


def _lacking(values: Mapping[str, Any], needed: Mapping[str, Any], above: str) -> Iterator[str]:
    for key, want in needed.items():
        path = f"{above}.{key}" if above else str(key)
        have = values.get(key)
        if isinstance(want, Mapping):
            yield from _lacking(have if isinstance(have, Mapping) else {}, want, path)
        elif isinstance(want, list):
            given = have if isinstance(have, list) else []
            yield from (f"{path}: {_short(item)}" for item in want if item not in given)
        elif have is None:
            yield path


def _short(item: Any) -> str:
    if isinstance(item, Mapping):
        return ", ".join(str(value) for value in item.values())
    return str(item)


def with_needed(values: Mapping[str, Any], needed: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with what they lack added and nothing of theirs changed."""
    merged = copy.deepcopy(dict(values))
    for key, want in needed.items():
        have = merged.get(key)
        if isinstance(want, Mapping):
            merged[key] = with_needed(have if isinstance(have, Mapping) else {}, want)
        elif isinstance(want, list):
            given = list(have) if isinstance(have, list) else []
            merged[key] = given + [item for item in want if item not in given]
        elif have is None:
            merged[key] = want
    return merged
