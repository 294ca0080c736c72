"""What the pools' nodes cost, and by which prices, for a person who starts a run. Pure.

Prices decide nothing, so an unknown one is no missing prerequisite.
"""

from __future__ import annotations

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.preflight.facts import Prerequisite, State
from gpu_fleet.core.spec import ClusterSpec, NodePool

_REMEDY = "grant what is named to have current prices (docs/guides/prices.md); no run needs them"


def judge_prices(spec: ClusterSpec, prices: PriceList) -> list[Prerequisite]:
    """Per managed pool what a node costs. Unknown where AWS could not be asked, or a price is missing."""
    found = []
    for pool in spec.node_pools:
        if not pool.manage:
            continue
        unlisted = [name for name in pool.instance_types if prices.instance(name).usd is None]
        shown = "; ".join(_of_type(name, pool, prices) for name in pool.instance_types)
        every = [prices.instance(name, kind) for name in pool.instance_types for kind in pool.capacity_types]
        message = f"{shown}. {prices.describe(*every)}"
        complete = not unlisted and not prices.gaps
        remedy = "" if complete else _REMEDY if prices.gaps else f"AWS lists no price of {', '.join(unlisted)}"
        found.append(
            Prerequisite(f"prices of pool {pool.name}", State.MET if complete else State.UNKNOWN, message, remedy)
        )
    return found


def _of_type(name: str, pool: NodePool, prices: PriceList) -> str:
    words = [f"on-demand {prices.instance(name)}"]
    zones = prices.spot.hourly.get(name, {}) if prices.spot is not None else {}
    if "spot" in pool.capacity_types and zones:
        low, high = min(zones, key=lambda zone: zones[zone]), max(zones, key=lambda zone: zones[zone])
        words.append(
            f"spot {zones[low]:.2f} USD/h ({low})" + (f" to {zones[high]:.2f} USD/h ({high})" if low != high else "")
        )
    return f"{name}: {', '.join(words)}"
