"""Watches: initial events, bookmarks, history, selectors over changes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

from sandbox.apiserver.errors import ApiError, expired, forbidden_value
from sandbox.apiserver.jsontools import Obj, dumps
from sandbox.apiserver.requests.representations.negotiation import Representation
from sandbox.apiserver.resources import Resource
from sandbox.apiserver.rules.selectors import Predicate
from sandbox.apiserver.store import Change, Record, Store, Watcher

BOOKMARK_INTERVAL = 60.0  # seconds; apiserver storage/cacher sends one about every minute
_INITIAL_END = "k8s.io/initial-events-end"


class WatchOptions:
    """
    The parameters of a watch.

    :raises ApiError: 400 or 422 for impossible combinations.
    """

    def __init__(self, query: dict[str, str]) -> None:
        self.bookmarks = query.get("allowWatchBookmarks", "").lower() in ("true", "1")
        self.initial = query.get("sendInitialEvents", "").lower() in ("true", "1")
        version = query.get("resourceVersion", "")
        if version and not version.isdigit():
            raise ApiError(400, "BadRequest", f'invalid resource version "{version}"')
        self.since = int(version) if version else 0
        match = query.get("resourceVersionMatch", "")
        if "sendInitialEvents" in query and match != "NotOlderThan":
            text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            cause = forbidden_value("resourceVersionMatch", text)
            raise ApiError(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {cause}')
        seconds = query.get("timeoutSeconds", "")
        # Without a limit the server picks one between 30 and 60 minutes (apiserver --min-request-timeout).
        self.timeout = float(seconds) if seconds.isdigit() and int(seconds) else random.uniform(1800, 3600)


class Stream:
    """One watch as a sequence of encoded events."""

    def __init__(
        self,
        store: Store,
        resource: Resource,
        namespace: str | None,
        wanted: Predicate | None,
        options: WatchOptions,
        representation: Representation,
    ) -> None:
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._wanted = wanted
        self._options = options
        self._representation = representation

    async def events(self) -> AsyncIterator[bytes]:
        """Encoded events until the time-out, or until the server closes."""
        key = self._resource.storage
        watcher = self._store.subscribe(key, self._namespace)
        try:
            backlog = self._backlog()
            if backlog is None:
                oldest = self._store.table(key).compacted
                yield self._line("ERROR", dumps(expired(self._options.since, oldest).status()))
                return
            for line in backlog:
                yield line
            async for line in self._live(watcher):
                yield line
        finally:
            self._store.unsubscribe(key, watcher)

    def _backlog(self) -> list[bytes] | None:
        """What precedes live events; ``None`` if the history no longer reaches back that far."""
        options = self._options
        if options.since and not options.initial:
            changes = self._store.since(self._resource.storage, options.since)
            if changes is None:
                return None
            mine = [change for change in changes if self._namespace in (None, change.new.namespace)]
            return [line for change in mine if (line := self._event(change)) is not None]
        lines = [
            self._line("ADDED", self._representation.one(self._resource, record))
            for record in self._store.list(self._resource.storage, self._namespace)
            if self._wanted is None or self._wanted(record.obj)
        ]
        if options.initial and options.bookmarks:
            lines.append(self._bookmark(initial=True))
        return lines

    async def _live(self, watcher: Watcher) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.timeout
        bookmark = loop.time() + BOOKMARK_INTERVAL
        while (remaining := end - loop.time()) > 0:
            wait = min(remaining, bookmark - loop.time()) if self._options.bookmarks else remaining
            try:
                change = (
                    watcher.queue.get_nowait()
                    if not watcher.queue.empty()
                    else await asyncio.wait_for(watcher.queue.get(), max(0.0, wait))
                )
            except TimeoutError:
                if self._options.bookmarks and loop.time() >= bookmark:
                    bookmark = loop.time() + BOOKMARK_INTERVAL
                    yield self._bookmark(initial=False)
                continue
            if change is None:
                return
            line = self._event(change)
            if line is not None:
                yield line

    def _event(self, change: Change) -> bytes | None:
        """A change as this selector sees it: entering it is ADDED, leaving it DELETED."""
        wanted = self._wanted
        before = change.old is not None and (wanted is None or wanted(change.old.obj))
        after = not change.deleted and (wanted is None or wanted(change.new.obj))
        if not before and not after:
            return None
        if before and not after:
            gone = change.new
            if not change.deleted and change.old is not None:
                # The last state that matched, at the revision that made it leave.
                metadata = {**change.old.obj["metadata"], "resourceVersion": str(change.revision)}
                gone = Record({**change.old.obj, "metadata": metadata}, change.revision)
            return self._line("DELETED", self._representation.one(self._resource, gone))
        kind = "MODIFIED" if before else "ADDED"
        return self._line(kind, self._representation.one(self._resource, change.new))

    def _bookmark(self, *, initial: bool) -> bytes:
        metadata: Obj = {"resourceVersion": str(self._store.revision), "creationTimestamp": None}
        if initial:
            metadata["annotations"] = {_INITIAL_END: "true"}
        body: Obj = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        if self._representation.form == "metadata":
            body["kind"], body["apiVersion"] = "PartialObjectMetadata", "meta.k8s.io/v1"
        elif self._representation.form == "table":
            row = {"cells": [], "object": {**body, "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}}
            list_metadata = {"resourceVersion": metadata["resourceVersion"]}
            body = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "rows": [row]}
        return self._line("BOOKMARK", dumps(body))

    @staticmethod
    def _line(kind: str, encoded: bytes) -> bytes:
        return b'{"type":"' + kind.encode() + b'","object":' + encoded + b"}\n"
