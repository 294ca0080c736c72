"""Objects in memory, with one revision counter, a bounded history per resource, and watchers.

A stored object is never changed in place: a write stores a new one. So a record's encoding can be cached and shared by
every list and watch, and a watcher's queue holds references, not copies.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.apiserver.jsontools import Obj, dumps

HISTORY = 5000  # events kept per resource; a watch from an older revision gets 'Expired'

Key = tuple[str, str]  # (group, plural)


class Record:
    """One version of one object, with its JSON encoding made at most once."""

    __slots__ = ("_item", "_raw", "obj", "revision")

    def __init__(self, obj: Obj, revision: int) -> None:
        self.obj = obj
        self.revision = revision
        self._raw: bytes | None = None
        self._item: bytes | None = None

    @property
    def raw(self) -> bytes:
        if self._raw is None:
            self._raw = dumps(self.obj)
        return self._raw

    @property
    def item(self) -> bytes:
        """The encoding inside a typed list, where Kubernetes leaves out apiVersion and kind."""
        if self._item is None:
            self._item = dumps({key: value for key, value in self.obj.items() if key not in ("apiVersion", "kind")})
        return self._item

    @property
    def namespace(self) -> str:
        return str(self.obj["metadata"].get("namespace", ""))

    @property
    def name(self) -> str:
        return str(self.obj["metadata"]["name"])


@dataclass(frozen=True)
class Change:
    """One write: ``old`` is ``None`` for a creation; ``deleted``: ``new`` is the last state of the deleted object."""

    revision: int
    new: Record
    old: Record | None
    deleted: bool


class Watcher:
    """A queue of the changes of one resource (of one namespace, if given)."""

    def __init__(self, namespace: str | None) -> None:
        self.namespace = namespace
        self.queue: asyncio.Queue[Change | None] = asyncio.Queue()

    def offer(self, change: Change) -> None:
        if self.namespace is None or change.new.namespace == self.namespace:
            self.queue.put_nowait(change)


class Table:
    """All objects of one resource."""

    def __init__(self) -> None:
        self.namespaces: dict[str, dict[str, Record]] = {}
        self.history: deque[Change] = deque()
        self.compacted = 0
        self.watchers: set[Watcher] = set()


class Store:
    """
    :ivar revision: of the last write; every resourceVersion is one of its values.
    """

    def __init__(self) -> None:
        self.revision = 1
        self._tables: dict[Key, Table] = {}
        self._written = asyncio.Event()

    async def reached(self, revision: int) -> None:
        """Return when a write has this revision or a later one."""
        while self.revision < revision:
            self._written.clear()
            await self._written.wait()

    def table(self, key: Key) -> Table:
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = Table()
        return found

    def get(self, key: Key, namespace: str, name: str) -> Record | None:
        return self.table(key).namespaces.get(namespace, {}).get(name)

    def list(self, key: Key, namespace: str | None = None) -> list[Record]:
        """Records in the order of their keys (namespace, name), as etcd returns them."""
        namespaces = self.table(key).namespaces
        chosen = sorted(namespaces) if namespace is None else [namespace]
        return [record for space in chosen for _, record in sorted(namespaces.get(space, {}).items())]

    def __iter__(self) -> Iterator[tuple[Key, Record]]:
        return iter([(key, record) for key in list(self._tables) for record in self.list(key)])

    def put(self, key: Key, obj: Obj) -> Record:
        """Store an object or a new version of one; gives it its resourceVersion. The caller hands ``obj`` over."""
        self.revision += 1
        metadata = obj["metadata"]
        metadata["resourceVersion"] = str(self.revision)
        record = Record(obj, self.revision)
        space = self.table(key).namespaces.setdefault(metadata.get("namespace", ""), {})
        old = space.get(metadata["name"])
        space[metadata["name"]] = record
        self._publish(key, Change(self.revision, record, old, deleted=False))
        return record

    def remove(self, key: Key, namespace: str, name: str, last: Obj | None = None) -> Record:
        """Remove an object; ``last`` is its final state if it differs from the stored one."""
        space = self.table(key).namespaces[namespace]
        old = space.pop(name)
        self.revision += 1
        final: dict[str, Any] = dict(last if last is not None else old.obj)
        final["metadata"] = {**final["metadata"], "resourceVersion": str(self.revision)}
        record = Record(final, self.revision)
        self._publish(key, Change(self.revision, record, old, deleted=True))
        return record

    def _publish(self, key: Key, change: Change) -> None:
        self._written.set()
        table = self.table(key)
        table.history.append(change)
        if len(table.history) > HISTORY:
            table.compacted = table.history.popleft().revision
        for watcher in table.watchers:
            watcher.offer(change)

    def since(self, key: Key, revision: int) -> Sequence[Change] | None:
        """Changes after ``revision``, or ``None`` if that is older than the history."""
        table = self.table(key)
        if revision < table.compacted:
            return None
        newest_first = itertools.takewhile(lambda change: change.revision > revision, reversed(table.history))
        return list(newest_first)[::-1]

    def compact(self) -> None:
        """Forget all history, as etcd's compaction does every five minutes: older watches expire."""
        for table in self._tables.values():
            table.history.clear()
            table.compacted = self.revision

    def subscribe(self, key: Key, namespace: str | None) -> Watcher:
        watcher = Watcher(namespace)
        self.table(key).watchers.add(watcher)
        return watcher

    def unsubscribe(self, key: Key, watcher: Watcher) -> None:
        self.table(key).watchers.discard(watcher)

    def close(self) -> None:
        """End every watch."""
        for table in self._tables.values():
            for watcher in table.watchers:
                watcher.queue.put_nowait(None)

    def end_watches(self, key: Key) -> None:
        """End the watches of one resource; what it holds stays."""
        for watcher in self.table(key).watchers:
            watcher.queue.put_nowait(None)

    def drop_table(self, key: Key) -> None:
        """Forget a custom resource that is no longer served; its watches end."""
        table = self._tables.pop(key, None)
        if table is not None:
            for watcher in table.watchers:
                watcher.queue.put_nowait(None)
