"""Keeps a drain's records durable, in few large writes, without ever holding up the drain for long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gpu_fleet.core.drain.records import PodRecord

log = logging.getLogger(__name__)

Store = Callable[[Mapping[str, dict[str, Any]]], None]

#: Seconds between two writes.
EVERY_S = 1.0
#: Seconds that a pod's first request waits for the write that announces it. A store that is away (Airflow's API server
#: restarts) must not cost the pods their grace: then the report of a killed try says less.
PATIENCE_S = 2.0


class Ledger:
    """Writes records before their pods are asked for the first time, and whatever has changed since.

    :param store: keeps the records, UID to JSON, in place of those that it has; may block and may fail. It is called in
        a thread of the ledger's, one call at a time.
    :param wake: called when a write has ended, in that thread.
    """

    def __init__(self, store: Store | None, wake: Callable[[], None]) -> None:
        self._store, self._wake = store, wake
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu-fleet-drain-ledger")
        self._announced: set[str] = set()
        self._in_write: set[str] = set()
        self._writing: Future[None] | None = None
        self._began, self._dirty = float("-inf"), False

    def is_announced(self, uid: str) -> bool:
        """Whether the pod may be asked to go: its record is stored, or storing it has taken too long."""
        return self._store is None or uid in self._announced

    def changed(self) -> None:
        """Something is to be written, when it is time."""
        self._dirty = True

    def tick(self, now: float, records: Mapping[str, PodRecord], announce: Iterable[str]) -> float:
        """Begin or end a write if it is time.

        :param announce: UIDs that wait for :meth:`is_announced`.
        :returns: when to call again at the latest.
        """
        if self._store is None:
            return float("inf")
        if self._writing is not None and (self._writing.done() or now - self._began >= PATIENCE_S):
            self._announced |= self._in_write
            if self._writing.done():
                self._writing = None
            else:
                self._announced |= set(announce)
        waiting = set(announce) - self._announced
        if self._writing is not None:
            return self._began + PATIENCE_S if now - self._began < PATIENCE_S else now + EVERY_S
        if not (self._dirty or waiting):
            return float("inf")
        if now - self._began < EVERY_S:
            return self._began + EVERY_S
        self._began, self._dirty, self._in_write = now, False, waiting
        self._writing = self._thread.submit(self._write, self._store, _rows(records))
        return now + PATIENCE_S

    def close(self, records: Mapping[str, PodRecord]) -> None:
        """Write a last time, and wait for it."""
        if self._store is not None:
            self._thread.submit(self._write, self._store, _rows(records))
        self._thread.shutdown(wait=True)

    def _write(self, store: Store, rows: Mapping[str, dict[str, Any]]) -> None:
        try:
            store(rows)
        except Exception:
            # The drain goes on: evicting in time is worth more than a report of a killed try.
            log.exception("cannot keep the records of %d pods; the drain continues", len(rows))
        finally:
            self._wake()


def _rows(records: Mapping[str, PodRecord]) -> dict[str, dict[str, Any]]:
    return {uid: record.to_json() for uid, record in records.items()}
