"""Named faults, set through the control API or ``python -m sandbox fault …`` and read by the parts.

A fault is a name with JSON parameters and an optional number of times it applies. Parts ask ``board.active(name)`` (is
it set?), ``board.each(name)`` (all of that kind: ``name`` itself and ``name:anything``, for several at a time) or
``board.take(name)`` (is it set, and use up one count?).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class FaultBoard:
    """All faults that are set now."""

    def __init__(self) -> None:
        self._faults: dict[str, dict[str, Any]] = {}
        self._since: dict[str, float] = {}
        self._listeners: list[Callable[[], None]] = []

    @contextmanager
    def heard_by(self, listener: Callable[[], None]) -> Iterator[None]:
        """``listener`` is called at once after every change, while the block lasts."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _changed(self) -> None:
        for listener in list(self._listeners):
            listener()

    def set(self, name: str, params: dict[str, Any] | None = None, count: int | None = None) -> None:
        self._faults[name] = {"params": dict(params or {}), "count": count}
        self._since[name] = time.monotonic()
        self._changed()

    def clear(self, name: str | None = None) -> None:
        if name is None:
            self._faults.clear()
        else:
            self._faults.pop(name, None)
        self._changed()

    def active(self, name: str) -> dict[str, Any] | None:
        """The fault's parameters if it is set, else ``None``; uses nothing up."""
        fault = self._faults.get(name)
        return None if fault is None else dict(fault["params"])

    def each(self, kind: str) -> list[dict[str, Any]]:
        """The parameters of all faults of a kind, in the order in which they were set."""
        return [dict(fault["params"]) for name, fault in self._faults.items() if name.partition(":")[0] == kind]

    def each_since(self, kind: str) -> list[tuple[dict[str, Any], float]]:
        """The parameters of all faults of a kind, and when each was set (``time.monotonic``)."""
        found = [name for name in self._faults if name.partition(":")[0] == kind]
        return [(dict(self._faults[name]["params"]), self._since[name]) for name in found]

    def take(self, name: str) -> dict[str, Any] | None:
        """Like :meth:`active`, but uses up one of the fault's counts."""
        fault = self._faults.get(name)
        if fault is None:
            return None
        if fault["count"] is not None:
            fault["count"] -= 1
            if fault["count"] <= 0:
                del self._faults[name]
                self._changed()
        return dict(fault["params"])

    def snapshot(self) -> dict[str, dict[str, Any]]:
        return {name: dict(fault) for name, fault in sorted(self._faults.items())}
