"""What capacity costs at list prices: estimates for plans, leak reports and the demo's report, not a bill.

Prices come from dated data files (``include/prices``). A price that a file does not list is unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: AWS bills volumes per GiB-month and counts 730 hours to a month (Amazon EBS pricing).
HOURS_PER_MONTH = 730.0


@dataclass(frozen=True)
class Price:
    """An hourly price.

    :ivar usd: USD per hour, or ``None`` if the price list does not know it.
    :ivar at_most: the true price may be lower (spot).
    """

    usd: float | None
    at_most: bool = False

    def __str__(self) -> str:
        if self.usd is None:
            return "unknown price"
        return f"{'at most ' if self.at_most else ''}{self.usd:.2f} USD/h"


@dataclass(frozen=True)
class PriceList:
    """One region's list prices.

    :ivar date: when they were read (ISO date).
    :ivar source: the page that they come from.
    :ivar hourly: instance type -> USD per hour, on-demand.
    :ivar volumes: EBS type -> USD per GiB and month.
    """

    region: str
    date: str
    source: str
    hourly: Mapping[str, float] = field(default_factory=dict)
    volumes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, value: Mapping[str, Any]) -> PriceList:
        """
        :raises ValueError: a price is not a positive number, or an entry is missing.
        """
        missing = [key for key in ("region", "date", "source", "hourly") if not value.get(key)]
        if missing:
            raise ValueError(f"price list without {', '.join(missing)}")
        tables: dict[str, dict[str, float]] = {}
        for key in ("hourly", "volumes"):
            tables[key] = {}
            for name, price in (value.get(key) or {}).items():
                if isinstance(price, bool) or not isinstance(price, int | float) or price <= 0:
                    raise ValueError(f"{key}.{name}: {price!r} is not a price")
                tables[key][str(name)] = float(price)
        return cls(str(value["region"]), str(value["date"]), str(value["source"]), tables["hourly"], tables["volumes"])

    @classmethod
    def unknown(cls, region: str) -> PriceList:
        """The price list of a region without a data file: every price is unknown."""
        return cls(region, "", "no price list for this region")

    def instance(self, instance_type: str, capacity_type: str = "on-demand") -> Price:
        """An instance's price; spot and reserved capacity cost at most the on-demand price."""
        return Price(self.hourly.get(instance_type), at_most=capacity_type != "on-demand")

    def volume(self, volume_type: str, gib: float) -> Price:
        """A volume's price per hour."""
        monthly = self.volumes.get(volume_type)
        return Price(None if monthly is None else monthly * gib / HOURS_PER_MONTH)

    def describe(self) -> str:
        """The list's origin in words, for the foot of a report."""
        if not self.hourly:
            return f"Prices: {self.source}."
        return f"List prices of {self.date} for {self.region}: {self.source}"


def total(prices: Iterable[Price]) -> Price:
    """The sum of what is known; ``at_most`` if any part is; ``None`` only if nothing is known of a non-empty list."""
    items = list(prices)
    known = [price for price in items if price.usd is not None]
    if items and not known:
        return Price(None)
    return Price(sum(price.usd or 0.0 for price in known), at_most=any(price.at_most for price in known))


def unknown_types(prices: PriceList, instance_types: Iterable[str]) -> list[str]:
    """The instance types that the price list does not know."""
    return sorted({name for name in instance_types if name not in prices.hourly})
