"""On-demand list prices by region."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("on_demand.json")


@dataclass(frozen=True, slots=True)
class DatedPrices:
    """One region's list prices.

    :ivar date: the day that they are of, ISO 8601.
    :ivar source: where they were taken from, in words.
    :ivar hourly: instance type -> USD per hour, Linux, on-demand.
    """

    region: str
    date: str
    source: str
    hourly: Mapping[str, float]


@cache
def _regions() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["regions"]
    return found


def dated_prices(region: str) -> DatedPrices | None:
    """The prices of a region; ``None``: the file has none of it, as for China, where AWS's prices are in CNY."""
    entry = _regions().get(region)
    if entry is None:
        return None
    source = entry["source"]
    where = f"{source['repository']} at {source['commit'][:7]}, {source['file']}"
    return DatedPrices(region, entry["date"], where, entry["hourly"])


def priced_regions() -> tuple[str, ...]:
    return tuple(_regions())
