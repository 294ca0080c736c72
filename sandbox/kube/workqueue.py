"""The queue of keys that a controller reconciles, with retries (client-go ``util/workqueue``)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from sandbox.kube.resources import ApiError

log = logging.getLogger("sandbox.kube")


class WorkQueue:
    """Keys to reconcile: each at most once in the queue and never by two workers at a time.

    A key added while it is being worked on is worked on once more afterwards (client-go ``util/workqueue``).
    """

    def __init__(self, first_delay: float = 0.005, largest_delay: float = 5.0) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting: set[Any] = set()
        self._working: set[Any] = set()
        self._again: set[Any] = set()
        self._timers: dict[Any, asyncio.TimerHandle] = {}
        self._failures: dict[Any, int] = {}
        self._first_delay = first_delay
        self._largest_delay = largest_delay

    def add(self, key: Any) -> None:
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._queue.put_nowait(key)

    def add_after(self, key: Any, delay: float) -> None:
        """Add after ``delay`` real seconds; of several delays for a key the earliest counts."""
        if delay <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + delay:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(delay, self._fire, key)

    def _fire(self, key: Any) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def run(self, reconcile: Callable[[Any], Awaitable[None]], workers: int = 1) -> None:
        """Work until cancelled. A failing key is retried with exponential back-off and logged at the third time."""
        tasks = [asyncio.create_task(self._work(reconcile)) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    async def _work(self, reconcile: Callable[[Any], Awaitable[None]]) -> None:
        while True:
            key = await self._queue.get()
            self._waiting.discard(key)
            self._working.add(key)
            try:
                await reconcile(key)
                self._failures.pop(key, None)
            except Exception as error:  # noqa: BLE001 - one failing key must not stop the others
                self._retry(key, error)
            finally:
                self._working.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    def _retry(self, key: Any, error: Exception) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        expected = isinstance(error, ApiError) and (error.conflict or error.not_found or error.code >= 500)
        if isinstance(error, ApiError | aiohttp.ClientError | OSError):
            if failures == 3 and not expected:  # logged once, not at every attempt
                log.warning("%s: attempt %d failed: %s", key, failures, error)
        else:
            log.error("%s: attempt %d failed", key, failures, exc_info=error)
        self.add_after(key, min(self._largest_delay, self._first_delay * 2.0 ** min(failures, 12)))
