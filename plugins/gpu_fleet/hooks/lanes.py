"""Threads for blocking calls, separate for what may hang together: a region that does not answer delays no other.

A triggerer has one event loop for all clusters, and that loop one default pool of ``min(32, CPUs + 4)`` threads
(CPython 3.11 Lib/asyncio/base_events.py, ``run_in_executor``). A few calls of boto3 or of the resolver that hang there
would delay every trigger of every cluster. So each lane has threads of its own, and of equal work at most one call is
under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")

#: Threads of one lane, started as they are needed. A healthy region answers within a second, so eight serve its
#: clusters' polls.
WORKERS = 8


@dataclass
class _Flight:
    """A call under way, and how many wait for it."""

    future: Future[Any]
    waiting: int = 0


_lock = threading.RLock()  # a future that is cancelled calls back at once
_executors: dict[tuple[int, Hashable], ThreadPoolExecutor] = {}
_flights: dict[tuple[int, Hashable, Hashable], _Flight] = {}


async def shared(lane: Hashable, key: Hashable, work: Callable[[], Result], *, within: float) -> Result:
    """The result of blocking work, done in a thread of its lane.

    A caller that asks for the same while it is under way waits for that call. A queued call is dropped when its last
    caller leaves.

    :param lane: what may hang together, for example a connection and its region.
    :param key: names the work within its lane.
    :param within: seconds to wait.
    :raises TimeoutError: it has not ended by then. It continues, and the next caller waits for the same call.
    """
    loop, landed = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(landed.set)

    flight = _board(lane, key, work)
    flight.future.add_done_callback(wake)
    try:
        await asyncio.wait_for(landed.wait(), within)
        result: Result = flight.future.result()
        return result
    finally:
        with _lock:
            flight.waiting -= 1
            if not flight.waiting:
                flight.future.cancel()  # only what is still queued: what runs cannot be stopped


def _board(lane: Hashable, key: Hashable, work: Callable[[], Any]) -> _Flight:
    """The call under way, or a new one."""
    owner = os.getpid()  # threads do not survive a fork
    name = (owner, lane, key)
    with _lock:
        flight = _flights.get(name)
        if flight is None:
            executor = _executors.get((owner, lane))
            if executor is None:
                executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="gpu-fleet-lane")
                _executors[owner, lane] = executor
            # Airflow's loggers find their trigger in the context.
            flight = _flights[name] = _Flight(executor.submit(contextvars.copy_context().run, work))
            flight.future.add_done_callback(lambda _: _land(name))
        # Counted before the lock is released, or the last caller that leaves might cancel it.
        flight.waiting += 1
        return flight


def _land(name: tuple[int, Hashable, Hashable]) -> None:
    with _lock:
        _flights.pop(name, None)
