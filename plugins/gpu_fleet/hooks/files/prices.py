"""Reads the price lists of ``include/prices``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.errors import SpecError
from gpu_fleet.hooks.files.templates import include_dir


def load_prices(region: str) -> PriceList:
    """A region's own price list; a region without a file has only unknown prices.

    The weights of NodePools follow from it alone: it is a file in git, which changes when somebody edits it, so that
    no price that AWS changes makes Karpenter buy from another pool.

    :raises SpecError: if the file is there and cannot be used.
    """
    return _load(include_dir() / "prices" / f"ec2-{region}.yaml", region)


def known_prices(region: str) -> PriceList:
    """What files know of a region: those of its own list, and below them those of the package's dated file.

    :raises SpecError: see :func:`load_prices`.
    """
    own, dated = load_prices(region), PriceList.dated(region)
    return own.before(dated) if own.hourly else dated


@lru_cache(maxsize=32)
def _load(path: Path, region: str) -> PriceList:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return PriceList.unknown(region)
    except OSError as error:
        raise SpecError(
            f"price list {path} cannot be read: {error.strerror or error}", remedy="check its mode"
        ) from error
    try:
        prices = PriceList.from_mapping(yaml.safe_load(text) or {})
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise SpecError(f"price list {path}: {error}", remedy="correct it") from error
    if prices.region != region:
        raise SpecError(f"price list {path} is for {prices.region}", field="region", remedy=f"write region: {region}")
    return prices
