"""Keeps AWS's prices for a while, so that not every task asks again: one small file per account and region.

A file that cannot be read or written costs a question to AWS, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: Folder of the cache.
CACHE_VARIABLE = "GPU_FLEET_PRICE_CACHE"
#: Instance types per file, and files per folder; the oldest go first.
MAX_TYPES, MAX_FILES = 200, 64


@dataclass
class Kept:
    """What a file holds. Moments are epoch seconds.

    :ivar listed: instance type -> when it was asked, and USD per hour; ``None``: AWS lists none.
    :ivar spot: instance type -> when, and zone -> USD per hour.
    :ivar failed: question -> when, and what AWS said.
    """

    listed: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    spot: dict[str, tuple[float, dict[str, float]]] = field(default_factory=dict)
    failed: dict[str, tuple[float, str]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Kept:
        """
        :raises ValueError: or another error of a content that is not what :meth:`to_json` makes.
        """
        return cls(
            {str(k): (float(at), None if usd is None else float(usd)) for k, (at, usd) in value["listed"].items()},
            {
                str(k): (float(at), {str(zone): float(usd) for zone, usd in zones.items()})
                for k, (at, zones) in value["spot"].items()
            },
            {str(k): (float(at), str(words)) for k, (at, words) in value["failed"].items()},
        )

    def to_json(self) -> dict[str, Any]:
        return {"listed": _newest(self.listed), "spot": _newest(self.spot), "failed": self.failed}


def _newest(table: Mapping[str, tuple[float, Any]]) -> dict[str, tuple[float, Any]]:
    names = sorted(table, key=lambda name: table[name][0], reverse=True)[:MAX_TYPES]
    return {name: table[name] for name in sorted(names)}


def cache_folder() -> Path:
    """The folder, private to the user."""
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gpu-fleet" / "prices"


class PriceCache:
    """The file of one account and region.

    :param of: what tells it from others: connection, endpoint, region. Zones have other names in another account.
    """

    def __init__(self, *of: str) -> None:
        self.path = cache_folder() / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]}.json"

    def load(self) -> Kept:
        try:
            return Kept.from_json(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Kept()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.info("price cache %s is not used: %r", self.path, error)
            return Kept()

    def store(self, kept: Kept) -> None:
        """Write it in one step, so that no other task ever reads half of it; the last of two tasks wins."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    json.dump(kept.to_json(), file)
                os.replace(name, self.path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
            self._tidy()
        except OSError as error:
            log.info("price cache %s cannot be written: %s", self.path, error.strerror or error)

    def _tidy(self) -> None:
        files = sorted(self.path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[MAX_FILES:]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
