"""A few threads for the blocking calls of one reader that lives as long as its triggerer.

Not a ``ThreadPoolExecutor``: the interpreter waits for its threads when it exits (CPython 3.11
Lib/concurrent/futures/thread.py, ``_python_exit``), and a long poll takes 20 seconds. These are daemons, and whoever
leaves waits for none of them.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

_Job = tuple[Future[Any], Callable[[], Any]]


class DaemonThreads:
    """
    :param name: of the threads.
    :param count: how many calls may be under way; a thread is started when it is needed.
    """

    def __init__(self, name: str, count: int = 1) -> None:
        self._name = name
        self._most = count
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._started = 0
        self._closed = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of blocking work.

        A caller that is cancelled leaves at once; work that has begun continues, and its result is lost.

        :raises RuntimeError: after :meth:`close`.
        """
        if self._closed:
            raise RuntimeError(f"{self._name} is closed")
        future: Future[Any] = Future()
        # Airflow's loggers find their trigger in the context.
        context = contextvars.copy_context()
        self._jobs.put((future, lambda: context.run(work)))
        if self._started < self._most:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        result: Result = await asyncio.wrap_future(future)
        return result

    def close(self) -> None:
        """Let the threads end after their present call; harmless to repeat. Never waits."""
        if not self._closed:
            self._closed = True
            for _ in range(self._started):
                self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits)
                future.set_exception(error)
            del job, future, work  # or an idle thread keeps the last result alive
