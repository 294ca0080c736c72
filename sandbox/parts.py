"""Parts that run in the background: each can be stopped and started again, and is restarted after a crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from typing import Protocol

_log = logging.getLogger("sandbox")

_RESTARTS = 3
_RESTART_PAUSE = 1.0  # seconds; the crash may come from another part that is just starting


class PartState(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class Stoppable(Protocol):
    """What the control API can stop and start again."""

    restarts: int

    @property
    def state(self) -> PartState: ...

    async def stop(self) -> None: ...

    async def resume(self) -> None: ...


class Part:
    """
    One background part.

    :param run: a coroutine function that runs until it is cancelled; it may be called again afterwards.
    :param failed: called when the part has crashed too often to be started again.
    """

    def __init__(self, name: str, run: Callable[[], Awaitable[None]], failed: Callable[[str], None]) -> None:
        self.name = name
        self.restarts = 0
        self._run = run
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        self._state = PartState.STOPPED

    @property
    def state(self) -> PartState:
        return self._state

    def start(self) -> None:
        """Start it; does nothing if it is running."""
        if self._task is None or self._task.done():
            self.restarts = 0
            self._state = PartState.RUNNING
            self._task = asyncio.create_task(self._supervise(), name=f"part-{self.name}")

    async def resume(self) -> None:
        """:meth:`start`, for the control API."""
        self.start()

    async def stop(self) -> None:
        """Cancel it and wait until it has ended; does nothing if it is not running."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._state = PartState.STOPPED

    async def _supervise(self) -> None:
        while True:
            try:
                await self._run()
                reason = "it returned"
            except Exception as error:  # noqa: BLE001 - any crash is logged and reported to the owner
                _log.exception("the part %s crashed", self.name)
                reason = f"{type(error).__name__}: {error}"
            if self.restarts >= _RESTARTS:
                self._state = PartState.FAILED
                self._failed(f"the part {self.name} stopped for good after {self.restarts} restarts: {reason}")
                return
            self.restarts += 1
            await asyncio.sleep(_RESTART_PAUSE)
