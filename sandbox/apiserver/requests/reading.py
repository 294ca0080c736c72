"""The verbs get, list and watch."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json

from aiohttp import web

from sandbox.apiserver import errors
from sandbox.apiserver.jsontools import Obj, dumps
from sandbox.apiserver.requests import messages
from sandbox.apiserver.requests.routing import Call
from sandbox.apiserver.requests.watch import Stream, WatchOptions
from sandbox.apiserver.rules import selectors
from sandbox.apiserver.storage.writer import Writer
from sandbox.apiserver.store import Record
from sandbox.settings import Clock

_BLOCKED = 3.0  # seconds that a read waits for a revision that is not there yet


class Reading:
    def __init__(self, writer: Writer, clock: Clock) -> None:
        self._writer = writer
        self._store = writer.store
        self._clock = clock

    async def reach(self, call: Call) -> None:
        """
        Wait until the server knows the revision that a read must not be older than.

        :raises ApiError: 400 for none; 504 for one that did not come within three seconds
            (apiserver pkg/storage/cacher/watch_cache.go ``waitUntilFreshAndBlock``).
        """
        version = call.query("resourceVersion")
        if version and not version.isdigit():
            raise errors.bad_request(f'invalid resource version "{version}"')
        wanted = int(version or 0)
        if wanted <= self._store.revision:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._store.reached(wanted), self._clock.real(_BLOCKED))
        if wanted > self._store.revision:
            raise errors.too_large_version(wanted, self._store.revision)

    def get(self, call: Call) -> web.Response:
        record = self._writer.get(call.resource, call.namespace, call.name)
        return messages.reply(messages.representation(call).one(call.resource, record))

    def _scope(self, call: Call) -> str | None:
        return call.namespace if call.resource.namespaced and call.namespace else None

    def fields(self, call: Call) -> str:
        """The field selector; a name in the path of a watch is one too."""
        fields = call.query("fieldSelector")
        if call.name:
            fields = ",".join(filter(None, (fields, f"metadata.name={call.name}")))
        return fields

    def selected(self, call: Call) -> list[Record]:
        wanted = selectors.parse(call.query("labelSelector"), self.fields(call), call.resource)
        records = self._store.list(call.resource.storage, self._scope(call))
        if wanted is not None:
            records = [record for record in records if wanted(record.obj)]
        return [self._writer.versioned(call.resource, record) for record in records]

    def list(self, call: Call) -> web.Response:
        records = self.selected(call)
        metadata: Obj = {"resourceVersion": str(self._store.revision)}
        limit = max(0, call.number("limit") or 0)
        call.number("timeoutSeconds")
        token = call.query("continue")
        if token:
            start = tuple(_decode_continue(token))
            records = [record for record in records if (record.namespace, record.name) > start]
        if limit and len(records) > limit:
            last = records[limit - 1]
            metadata["continue"] = _encode_continue(last)
            metadata["remainingItemCount"] = len(records) - limit
            records = records[:limit]
        return messages.reply(messages.representation(call).many(call.resource, records, metadata))

    async def watch(self, call: Call) -> web.StreamResponse:
        call.number("timeoutSeconds")
        options = WatchOptions(dict(call.http.query))
        wanted = selectors.parse(call.query("labelSelector"), self.fields(call), call.resource)
        representation = messages.representation(call)
        stream = Stream(self._store, call.resource, self._scope(call), wanted, options, representation)
        response = web.StreamResponse(headers={"Content-Type": messages.JSON})
        response.enable_chunked_encoding()
        await response.prepare(call.http)
        # A client that disconnects, or a server that closes, ends the watch without an error.
        with contextlib.suppress(ConnectionResetError, asyncio.CancelledError):
            async for line in stream.events():
                await response.write(line)
            await response.write_eof()
        return response


def _encode_continue(record: Record) -> str:
    return base64.urlsafe_b64encode(dumps([record.namespace, record.name])).decode()


def _decode_continue(token: str) -> list[str]:
    try:
        found = json.loads(base64.urlsafe_b64decode(token))
    except ValueError as problem:
        raise errors.bad_request(f"continue key is not valid: {problem}") from problem
    if not isinstance(found, list) or len(found) != 2:
        raise errors.bad_request("continue key is not valid")
    return [str(part) for part in found]
