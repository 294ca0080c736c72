"""A bounded number of threads that ask an API server, and that pause together when it has too much to do."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

from gpu_fleet.hooks.kubernetes.transport import CONNECTIONS

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Requests under way at most. Each thread keeps a connection, so no more than the client keeps open; and few enough for
#: the seats that priority and fairness gives one client (kubernetes v1.35 flowcontrol bootstrap: level
#: ``workload-low``, 100 of 245 shares of 600 seats).
WORKERS = min(16, CONNECTIONS)


class Executor:
    """Runs requests side by side; close it, or use it as a context manager.

    :param workers: how many at most.
    :param monotonic: the clock of the pauses; injected by tests.
    """

    def __init__(self, workers: int = WORKERS, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.workers = workers
        self._monotonic = monotonic
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="gpu-fleet-drain")
        self._paused_until = 0.0
        self._closed = threading.Event()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Run a request as soon as a thread is free and no pause is on."""
        # Airflow's loggers find their task in the context.
        return self._threads.submit(contextvars.copy_context().run, self._run, work)

    def slow_down(self, seconds: float) -> None:
        """Begin no request for so long, whichever pod it is for."""
        self._paused_until = max(self._paused_until, self._monotonic() + seconds)

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results for all items, in their order.

        :raises Exception: the first that one of them has raised, once all have ended: what the others have done must
            be known.
        """
        futures = [self.submit(lambda item=item: work(item)) for item in items]  # type: ignore[misc]
        failures = [failure for future in futures if (failure := future.exception()) is not None]
        if failures:
            raise failures[0]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        self._closed.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Callable[[], Result]) -> Result:
        while (left := self._paused_until - self._monotonic()) > 0 and not self._closed.is_set():
            self._closed.wait(left)
        if self._closed.is_set():
            raise CancelledError
        return work()
