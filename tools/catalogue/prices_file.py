"""``on_demand.json``: list prices of the catalogue's types, by region, each region with its date and source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tools.catalogue import karpenter
from tools.catalogue.checkout import Checkout

FILE = Path(__file__).resolve().parents[2] / "plugins/gpu_fleet/core/catalogue/on_demand.json"
#: A table of GPU types by region, which its owner makes of instances.vantage.sh, and that of AWS's price lists.
TABLE = "data/all_gpu_instances.js"
_DATED = re.compile(r"Last updated: (\d{4}-\d{2}-\d{2})")
#: Regions; zones of other kinds (Local Zones, Wavelength) have prices of their own, and no place here.
_REGION = re.compile(r"[a-z]{2}(-gov|-iso[a-z]?)?-[a-z]+-[0-9]")


def made(karpenter_at: Checkout, table: Checkout | None, types: Iterable[str]) -> dict[str, Any]:
    """The file's content: Karpenter's prices where it has the region, else the table's.

    :raises ValueError: the two sources disagree on a price that both know.
    """
    known = set(types)
    regions: dict[str, dict[str, Any]] = {}
    if table is not None:
        for region, usd in _by_region(table.text(TABLE)).items():
            regions[region] = _region(_day(table), table.source(file=TABLE), usd, known)
    for region, (day, path, usd) in karpenter.prices(karpenter_at).items():
        fresh = _region(day, karpenter_at.source(file=path), usd, known)
        _compare(region, fresh["hourly"], regions.get(region, {}).get("hourly", {}))
        regions[region] = fresh
    return {"currency": "USD", "regions": {name: regions[name] for name in sorted(regions) if regions[name]["hourly"]}}


def _region(day: str, source: Mapping[str, str], usd: Mapping[str, float], known: set[str]) -> dict[str, Any]:
    return {"date": day, "source": source, "hourly": {name: usd[name] for name in sorted(usd) if name in known}}


def _day(table: Checkout) -> str:
    found = _DATED.search(table.text(TABLE))
    if found is None:
        raise ValueError(f"{TABLE} does not say when it was made")
    return found[1]


def _by_region(text: str) -> dict[str, dict[str, float]]:
    entries, _ = json.JSONDecoder().raw_decode(text[text.index("[") :])
    found: dict[str, dict[str, float]] = {}
    for entry in entries:
        for region, price in (entry.get("pricing") or {}).items():
            if _REGION.fullmatch(region) and (price.get("onDemand") or 0) > 0:
                found.setdefault(region, {})[str(entry["name"])] = float(price["onDemand"])
    return found


def _compare(region: str, one: Mapping[str, float], other: Mapping[str, float]) -> None:
    """A change of price between the two dates shows here, too: then the older table must be made anew."""
    wrong = [name for name in one.keys() & other.keys() if abs(one[name] - other[name]) > 1e-4]
    if wrong:
        listed = ", ".join(f"{name} {one[name]} and {other[name]}" for name in sorted(wrong))
        raise ValueError(f"{region}: the two sources disagree: {listed}")


def written(document: Mapping[str, Any]) -> str:
    """JSON with a line per region's prices."""
    regions = []
    for name, entry in document["regions"].items():
        head = json.dumps({"date": entry["date"], "source": entry["source"]})[:-1]
        regions.append(f'    {json.dumps(name)}: {head}, "hourly":\n      {json.dumps(entry["hourly"])}}}')
    return (
        f'{{\n  "currency": {json.dumps(document["currency"])},\n  "regions": {{\n' + ",\n".join(regions) + "\n  }\n}\n"
    )
