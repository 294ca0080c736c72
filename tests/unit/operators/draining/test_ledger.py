from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.drain.records import PodRecord
from gpu_fleet.operators.draining.ledger import EVERY_S, PATIENCE_S, Ledger

RECORDS = {uid: PodRecord("team", uid, uid, "n1", "Evictable") for uid in ("a", "b", "c")}


class Store:
    def __init__(self) -> None:
        self.writes: list[set[str]] = []
        self.goes_on, self.ended = threading.Event(), threading.Semaphore(0)
        self.goes_on.set()

    def __call__(self, rows: Mapping[str, dict[str, Any]]) -> None:
        self.goes_on.wait(10)
        self.writes.append(set(rows))


def ledger(store: Store | None) -> Ledger:
    return Ledger(store, store.ended.release if store is not None else lambda: None)


def test_a_pod_is_announced_when_its_record_is_stored() -> None:
    store = Store()
    store.goes_on.clear()
    book = ledger(store)
    book.tick(0.0, RECORDS, ["a", "b"])
    assert not book.is_announced("a")
    store.goes_on.set()
    store.ended.acquire(timeout=5)
    book.tick(0.1, RECORDS, ["a", "b", "c"])
    assert [book.is_announced(uid) for uid in ("a", "b", "c")] == [True, True, False]
    book.close(RECORDS)


def test_writes_are_at_most_one_a_second_and_the_last_one_is_made() -> None:
    store = Store()
    book = ledger(store)
    book.changed()
    book.tick(0.0, RECORDS, ())
    store.ended.acquire(timeout=5)
    book.changed()
    assert book.tick(EVERY_S / 2, RECORDS, ()) == EVERY_S
    assert len(store.writes) == 1
    book.tick(EVERY_S, RECORDS, ())
    store.ended.acquire(timeout=5)
    assert len(store.writes) == 2
    book.tick(2 * EVERY_S, RECORDS, ())
    assert len(store.writes) == 2, "nothing has changed"
    book.close(RECORDS)
    assert len(store.writes) == 3


def test_a_store_that_is_away_is_waited_for_once() -> None:
    store = Store()
    store.goes_on.clear()
    book = ledger(store)
    book.tick(0.0, RECORDS, ["a"])
    book.tick(PATIENCE_S - 0.1, RECORDS, ["a"])
    assert not book.is_announced("a")
    book.tick(PATIENCE_S, RECORDS, ["a", "b"])
    assert book.is_announced("a")
    assert book.is_announced("b"), "a later pod does not wait as long again"
    store.goes_on.set()
    book.close(RECORDS)


def test_without_a_store_nothing_waits() -> None:
    book = ledger(None)
    assert book.is_announced("a")
    assert book.tick(0.0, RECORDS, ()) == float("inf")
    book.close(RECORDS)
