"""The prices of a cluster's region: what AWS answers, and files for what it does not.

A price is information: whatever fails here is said beside the sums, and fails no task.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gpu_fleet.core.aws.costs import PriceList, SpotPrices
from gpu_fleet.core.aws.errors import refuses_credentials
from gpu_fleet.core.errors import Forbidden, GpuFleetError
from gpu_fleet.core.interruptions.nodes import OurNode
from gpu_fleet.core.spec import ClusterSpec, NodePool
from gpu_fleet.core.teardown.remains import capacity_type
from gpu_fleet.hooks.aws import aws_session
from gpu_fleet.hooks.aws.prices import LIST_ACTION, SPOT_ACTION, list_price, price_list_session, spot_prices
from gpu_fleet.hooks.files.price_cache import Kept, PriceCache
from gpu_fleet.hooks.files.prices import known_prices, load_prices

log = logging.getLogger(__name__)

#: ``off``: AWS is not asked for prices; the files are used.
LIVE_VARIABLE = "GPU_FLEET_LIVE_PRICES"
#: Seconds for which an answer is used: AWS changes list prices rarely, spot prices every few minutes at most; and for
#: which a question that failed is not asked again.
LIST_TTL_S, SPOT_TTL_S, FAILURE_TTL_S = 86_400.0, 600.0, 600.0
#: Instance types that are asked for at once, and seconds after which no further one is.
MAX_TYPES, BUDGET_S = 30, 20.0
_LIST, _SPOT = "list prices", "spot prices"


def prices_for(
    spec: ClusterSpec,
    instance_types: Iterable[str],
    *,
    spot: bool = False,
    now: Callable[[], float] = time.time,
) -> PriceList:
    """The prices of these instance types in the cluster's region.

    :param spot: some of the instances are spot.
    :raises SpecError: a price list in ``include/prices`` that cannot be used.
    """
    own, files = load_prices(spec.region), known_prices(spec.region)
    types = sorted(set(instance_types))
    if not types or os.environ.get(LIVE_VARIABLE, "").lower() == "off":
        return files
    found = _Lookup(spec, types[:MAX_TYPES], now)
    listed = found.list_prices()
    bids = found.spot_prices() if spot else None
    if len(types) > MAX_TYPES:
        found.gaps.append(f"AWS was asked for {MAX_TYPES} of {len(types)} instance types only")
    if not listed.hourly:
        top = files
    elif own.fixed:
        top = own.before(listed.before(PriceList.dated(spec.region)))
    else:
        top = listed.before(files)
    return replace(top, spot=bids, gaps=tuple(found.gaps))


def prices_of_instances(spec: ClusterSpec, instances: Iterable[Mapping[str, Any]]) -> PriceList:
    """The prices of instances as EC2 describes them.

    :raises SpecError: see :func:`prices_for`.
    """
    found = list(instances)
    types = (str(instance.get("InstanceType")) for instance in found)
    return prices_for(spec, types, spot=any(capacity_type(instance) == "spot" for instance in found))


def prices_of_nodes(spec: ClusterSpec, nodes: Iterable[OurNode]) -> PriceList:
    """The prices of nodes.

    :raises SpecError: see :func:`prices_for`.
    """
    found = [node for node in nodes if node.instance_type]
    return prices_for(spec, (node.instance_type for node in found), spot=any(node.spot for node in found))


def prices_of_pools(spec: ClusterSpec, pools: Iterable[NodePool]) -> PriceList:
    """The prices of what pools may buy.

    :raises SpecError: see :func:`prices_for`.
    """
    found = list(pools)
    types = (name for pool in found for name in pool.instance_types)
    return prices_for(spec, types, spot=any("spot" in pool.capacity_types for pool in found))


class _Lookup:
    """The questions of one task; answers that are kept and still good are not asked for again.

    :ivar gaps: what could not be asked, in words.
    """

    def __init__(self, spec: ClusterSpec, types: list[str], now: Callable[[], float]) -> None:
        self._region, self._connection = spec.region, spec.aws.connection
        self._types, self._now = types, now
        self.gaps: list[str] = []
        self._session = aws_session(self._connection, self._region)
        self._cache: PriceCache | None = None
        self._kept = Kept()

    def list_prices(self) -> PriceList:
        kept, now = self._open().listed, self._now()
        missing = [name for name in self._types if now - kept.get(name, (-LIST_TTL_S, None))[0] >= LIST_TTL_S]
        if missing:
            self._ask(_LIST, LIST_ACTION, lambda: self._ask_list(missing))
        answers = {name: kept[name] for name in self._types if name in kept and now - kept[name][0] < LIST_TTL_S}
        hourly = {name: usd for name, (_, usd) in answers.items() if usd is not None}
        oldest = min((at for at, usd in answers.values() if usd is not None), default=now)
        return PriceList(self._region, _day(oldest), "AWS Price List API", hourly)

    def spot_prices(self) -> SpotPrices | None:
        kept, now = self._open().spot, self._now()
        missing = [name for name in self._types if now - kept.get(name, (-SPOT_TTL_S, {}))[0] >= SPOT_TTL_S]
        if missing:
            self._ask(_SPOT, SPOT_ACTION, lambda: self._ask_spot(missing))
        answers = {name: kept[name] for name in self._types if name in kept and now - kept[name][0] < SPOT_TTL_S}
        hourly = {name: zones for name, (_, zones) in answers.items() if zones}
        if not hourly:
            return None
        return SpotPrices(_moment(min(answers[name][0] for name in hourly)), hourly)

    def _open(self) -> Kept:
        if self._cache is None:
            try:
                endpoint = self._session.custom_endpoint("pricing") or ""
            except GpuFleetError:
                endpoint = "unknown"  # the questions fail for the same cause, and say so
            self._cache = PriceCache(self._connection or "", endpoint, self._region)
            self._kept = self._cache.load()
        return self._kept

    def _ask(self, what: str, action: str, ask: Callable[[], None]) -> None:
        kept, now = self._open(), self._now()
        failed = kept.failed.get(what)
        if failed is not None and now - failed[0] < FAILURE_TTL_S:
            self.gaps.append(failed[1])
            return
        kept.failed.pop(what, None)
        try:
            ask()
        except GpuFleetError as error:
            words = f"AWS did not give its {what}: {_why(error, action)}"
            kept.failed[what] = (now, words)
            self.gaps.append(words)
            log.warning("%s (%s)", words, error)
        if self._cache is not None:
            self._cache.store(kept)

    def _ask_list(self, names: list[str]) -> None:
        if self._region.startswith("cn-"):
            self.gaps.append("AWS lists the prices of its regions in China in CNY, which are not used")
            return
        session = price_list_session(self._connection, self._region)
        if session is None:
            self.gaps.append(f"AWS has no Price List API for {self._region}")
            return
        started = time.monotonic()
        for name in names:
            if time.monotonic() - started > BUDGET_S:
                self.gaps.append("AWS's Price List API was too slow to be asked for every instance type")
                return
            self._kept.listed[name] = (self._now(), list_price(session, self._region, name))

    def _ask_spot(self, names: list[str]) -> None:
        found = spot_prices(self._session, names)
        self._kept.spot |= {name: (self._now(), found.get(name, {})) for name in names}


def _why(error: GpuFleetError, action: str) -> str:
    if isinstance(error, Forbidden) and not refuses_credentials(error):
        return f"{action} is not allowed"
    return error.reason


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M UTC on %Y-%m-%d")
