"""Verbs on resources: what happens to an authorised request."""

from __future__ import annotations

from aiohttp import web

from sandbox.apiserver import errors
from sandbox.apiserver.access.auth import ServiceAccountTokens
from sandbox.apiserver.access.rbac import Authorizer
from sandbox.apiserver.requests.below import Subresources
from sandbox.apiserver.requests.reading import Reading
from sandbox.apiserver.requests.routing import Call
from sandbox.apiserver.requests.subresources import PodLogs
from sandbox.apiserver.requests.writing import Writing
from sandbox.apiserver.storage.writer import Writer
from sandbox.settings import Clock


class Handlers:
    """Takes each request to its verb."""

    def __init__(
        self, writer: Writer, authorizer: Authorizer, tokens: ServiceAccountTokens, logs: PodLogs, clock: Clock
    ) -> None:
        self._writer = writer
        self._reading = Reading(writer, clock)
        self._writing = Writing(writer, self._reading, authorizer, tokens, logs)
        self._below = Subresources(writer, tokens, logs)

    async def handle(self, call: Call) -> web.StreamResponse:
        if call.subresource and call.subresource != "status":
            return await self._below.handle(call)
        if call.verb not in call.resource.verbs:
            raise errors.method_not_allowed()
        if call.verb in ("update", "patch") and not call.name:
            # Custom resources have no routes by method (apiextensions-apiserver customresource_handler.go).
            raise errors.bad_request("name must be provided") if call.resource.custom else errors.method_not_allowed()
        if call.resource.custom:
            selected = call.query("labelSelector") or self._reading.fields(call)
            past_cache = bool(call.number("limit")) and not selected
            await self._writer.definitions.admit(call.resource, call.verb, delegated=past_cache)
        match call.verb:
            case "get":
                await self._reading.reach(call)
                return self._reading.get(call)
            case "list":
                await self._reading.reach(call)
                return self._reading.list(call)
            case "watch":
                return await self._reading.watch(call)
            case "create":
                return await self._writing.create(call)
            case "update":
                return await self._writing.update(call)
            case "patch":
                return await self._writing.patch(call)
            case "delete":
                return await self._writing.delete(call)
            case "deletecollection":
                return await self._writing.delete_collection(call)
            case _:
                raise errors.method_not_allowed()
