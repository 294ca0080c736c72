"""Reading responses of boto3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dig(response: Any, path: str) -> list[Any]:
    """The values at a dotted path of a response, lists flattened; a missing step gives nothing.

    ``dig(response, "Reservations.Instances")`` is the flat list of instances.
    """
    level = [response]
    for step in [part for part in path.split(".") if part]:
        found: list[Any] = []
        for value in level:
            child = value.get(step) if isinstance(value, Mapping) else None
            if isinstance(child, list):
                found.extend(child)
            elif child is not None:
                found.append(child)
        level = found
    return level
