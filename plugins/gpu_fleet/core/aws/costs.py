"""What capacity costs: estimates for plans, reports and verdicts, not a bill.

Prices come in layers: what AWS answered today, the region's own file (``include/prices``), the package's dated file.
Each price knows its origin, and every sum says it. A price that no layer has is unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gpu_fleet.core.catalogue import dated_prices

#: AWS bills volumes per GiB-month and counts 730 hours to a month (Amazon EBS pricing).
HOURS_PER_MONTH = 730.0


@dataclass(frozen=True)
class Price:
    """An hourly price.

    :ivar usd: USD per hour, or ``None`` if nothing knows it.
    :ivar at_most: the true price may be lower (spot of which only the list price is known).
    :ivar origin: date and source of each part, in words.
    """

    usd: float | None
    at_most: bool = False
    origin: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        if self.usd is None:
            return "unknown price"
        return f"{'at most ' if self.at_most else ''}{self.usd:.2f} USD/h"


UNKNOWN = Price(None)


@dataclass(frozen=True)
class SpotPrices:
    """What EC2 said of spot prices.

    :ivar when: in words, ``10:42 UTC on 2026-11-30``.
    :ivar hourly: instance type -> zone -> USD per hour.
    """

    when: str
    hourly: Mapping[str, Mapping[str, float]]

    def price(self, instance_type: str, zone: str = "") -> Price:
        """Of an instance in a zone; where that is not known, the highest of all zones, as a bound."""
        zones = self.hourly.get(instance_type) or {}
        origin = (self.describe(),)
        if zone in zones:
            return Price(zones[zone], origin=origin)
        return Price(max(zones.values()), at_most=len(zones) > 1, origin=origin) if zones else UNKNOWN

    def describe(self) -> str:
        return f"Spot prices of {self.when}: EC2, DescribeSpotPriceHistory"


@dataclass(frozen=True)
class PriceList:
    """One region's prices.

    :ivar date: the day that they are of (ISO date).
    :ivar source: where they come from.
    :ivar hourly: instance type -> USD per hour, on-demand.
    :ivar volumes: EBS type -> USD per GiB and month.
    :ivar fixed: they are used before what AWS lists: prices of a contract.
    :ivar spot: spot prices, if EC2 was asked.
    :ivar rest: prices of what this list does not have.
    :ivar gaps: what AWS could not be asked, and why, in words.
    """

    region: str
    date: str
    source: str
    hourly: Mapping[str, float] = field(default_factory=dict)
    volumes: Mapping[str, float] = field(default_factory=dict)
    fixed: bool = False
    spot: SpotPrices | None = None
    rest: PriceList | None = None
    gaps: tuple[str, ...] = ()

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
        fixed = value.get("fixed", False)
        if not isinstance(fixed, bool):
            raise ValueError(f"fixed: {fixed!r} is neither true nor false")
        return cls(
            str(value["region"]), str(value["date"]), str(value["source"]), tables["hourly"], tables["volumes"], fixed
        )

    @classmethod
    def unknown(cls, region: str) -> PriceList:
        """The prices of a region of which nothing is known."""
        return cls(region, "", "no price list for this region")

    @classmethod
    def dated(cls, region: str) -> PriceList:
        """The prices of the package's dated file."""
        found = dated_prices(region)
        if found is None:
            return cls.unknown(region)
        return cls(region, found.date, f"the price file of gpu-fleet, by {found.source}", found.hourly)

    def before(self, rest: PriceList) -> PriceList:
        """This list, and below its own lower layers another one for what they all lack."""
        return replace(self, rest=rest if self.rest is None else self.rest.before(rest))

    def instance(self, instance_type: str, capacity_type: str = "on-demand", zone: str = "") -> Price:
        """An instance's price; spot and reserved capacity cost at most the on-demand price.

        :param zone: of a spot instance, where it is known.
        """
        if capacity_type == "spot" and self.spot is not None:
            found = self.spot.price(instance_type, zone)
            if found.usd is not None:
                return found
        for layer in self._layers():
            usd = layer.hourly.get(instance_type)
            if usd is not None:
                return Price(usd, at_most=capacity_type != "on-demand", origin=(layer._origin(),))
        return Price(None, at_most=capacity_type != "on-demand")

    def volume(self, volume_type: str, gib: float) -> Price:
        """A volume's price per hour."""
        for layer in self._layers():
            monthly = layer.volumes.get(volume_type)
            if monthly is not None:
                return Price(monthly * gib / HOURS_PER_MONTH, origin=(layer._origin(),))
        return UNKNOWN

    def describe(self, *prices: Price) -> str:
        """Date and source in words, for the foot of a report.

        :param prices: those that the report shows; without any, every layer is named.
        """
        origins = _once(origin for price in prices for origin in price.origin)
        if not prices:
            every = [layer._origin() for layer in self._layers() if layer.hourly]
            origins = [*every, *([self.spot.describe()] if self.spot and self.spot.hourly else [])]
        if not origins:
            return ". ".join((f"Prices: {self._nothing()}", *self.gaps)) + "."
        return ". ".join((*origins, *self.gaps))

    def _nothing(self) -> str:
        listed = any(layer.hourly for layer in self._layers())
        return f"no list price of {self.region} was needed or is known" if listed else self._last().source

    def _last(self) -> PriceList:
        return list(self._layers())[-1]

    def _origin(self) -> str:
        return f"List prices of {self.date} for {self.region}: {self.source}"

    def _layers(self) -> Iterator[PriceList]:
        layer: PriceList | None = self
        while layer is not None:
            yield layer
            layer = layer.rest


def total(prices: Iterable[Price]) -> Price:
    """The sum of what is known; ``at_most`` if any part is; ``None`` only if nothing is known of a non-empty list."""
    items = list(prices)
    known = [price for price in items if price.usd is not None]
    if items and not known:
        return Price(None)
    origin = tuple(_once(each for price in known for each in price.origin))
    return Price(sum(price.usd or 0.0 for price in known), any(price.at_most for price in known), origin)


def unknown_types(prices: PriceList, instance_types: Iterable[str]) -> list[str]:
    """The instance types that no layer knows."""
    return sorted({name for name in instance_types if prices.instance(name).usd is None})


def _once(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
