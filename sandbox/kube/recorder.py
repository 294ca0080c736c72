"""Events, posted in the background and in order, so that posting one delays no work."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Literal

from sandbox.kube.client import Kube

EventType = Literal["Normal", "Warning"]


class Recorder:
    """
    :param component: the events' source.
    :param quiet: real seconds in which the same event about the same object is not posted again.
    """

    def __init__(self, kube: Kube, component: str, quiet: float = 0.0) -> None:
        self._kube = kube
        self._component = component
        self._quiet = quiet
        self._last: dict[tuple[str, str, str], float] = {}
        self._queue: asyncio.Queue[tuple[dict[str, Any], str, str, EventType]] = asyncio.Queue(maxsize=1000)

    def event(
        self,
        involved: dict[str, Any],
        reason: str,
        message: str,
        kind: EventType = "Normal",
        quiet: float | None = None,
        *,
        any_message: bool = False,
    ) -> None:
        """
        :param any_message: whether an event with another message is also held back by an earlier one.
        """
        said = "" if any_message else message
        key = (involved["metadata"].get("uid", involved["metadata"]["name"]), reason, said)
        moment = time.monotonic()
        if moment - self._last.get(key, -1e9) < (self._quiet if quiet is None else quiet):
            return
        self._last[key] = moment
        if len(self._last) > 5000:
            self._last.clear()
        with contextlib.suppress(asyncio.QueueFull):  # client-go's broadcaster drops too
            self._queue.put_nowait((involved, reason, message, kind))

    async def run(self) -> None:
        while True:
            involved, reason, message, kind = await self._queue.get()
            await self._kube.post_event(involved, reason, message, component=self._component, type=kind)
