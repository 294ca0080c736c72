"""Requests for what lies below an object, except its status."""

from __future__ import annotations

from aiohttp import web

from sandbox.apiserver import errors
from sandbox.apiserver.access.auth import ServiceAccountTokens
from sandbox.apiserver.jsontools import Obj, dig
from sandbox.apiserver.patches import formats as patch
from sandbox.apiserver.requests import messages, patching, subresources
from sandbox.apiserver.requests.representations import negotiation
from sandbox.apiserver.requests.routing import Call
from sandbox.apiserver.requests.subresources import PodLogs
from sandbox.apiserver.storage.writer import Writer


class Subresources:
    def __init__(self, writer: Writer, tokens: ServiceAccountTokens, logs: PodLogs) -> None:
        self._writer = writer
        self._tokens = tokens
        self._logs = logs

    async def handle(self, call: Call) -> web.StreamResponse:
        match call.subresource, call.verb:
            case "eviction", "create":
                body = await messages.body(call)
                _same_name(call, body)
                arguments = (call.resource, call.namespace, call.name, body, messages.options(call))
                return messages.reply(subresources.evict(self._writer, *arguments), 201)
            case "binding", "create":
                body = await messages.body(call)
                _same_name(call, body)
                arguments = (call.resource, call.namespace, call.name, body, messages.options(call))
                return messages.reply(subresources.bind(self._writer, *arguments), 201)
            case "token", "create":
                body = await messages.body(call)
                issued = subresources.issue_token(
                    self._writer, call.resource, call.namespace, call.name, body, self._tokens
                )
                return messages.reply(issued, 201)
            case "finalize", "update":
                body = await messages.body(call)
                record = subresources.finalize_namespace(
                    self._writer, call.resource, call.name, body, messages.options(call)
                )
                return messages.written(call, record)
            case "log", "get":
                return self._log(call)
            case "log", "update":
                pod = self._writer.get(call.resource, call.namespace, call.name).obj
                container = call.query("container") or pod["spec"]["containers"][0]["name"]
                self._logs.put(pod, container, await call.http.read())
                return messages.reply({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
            case "scale", _:
                return await self._scale(call)
            case _:
                raise errors.method_not_allowed()

    async def _scale(self, call: Call) -> web.Response:
        current = subresources.read_scale(self._writer, call.resource, call.namespace, call.name)
        if call.verb == "get":
            return messages.reply(current)
        if call.verb == "update":
            wanted = await messages.body(call)
        elif call.verb == "patch":
            kind = negotiation.media_type(call.http.headers.get("Content-Type", ""))
            document = negotiation.parse_yaml(await call.http.read())
            wanted = (
                patch.json_patch(current, document)
                if kind == patching.JSON_PATCH
                else patch.merge_patch(current, document)
            )
            if not isinstance(document, dict) or "resourceVersion" not in (document.get("metadata") or {}):
                wanted["metadata"] = {
                    key: value for key, value in wanted["metadata"].items() if key != "resourceVersion"
                }
        else:
            raise errors.method_not_allowed()
        arguments = (call.resource, call.namespace, call.name, wanted, messages.options(call))
        return messages.reply(subresources.write_scale(self._writer, *arguments))

    def _log(self, call: Call) -> web.Response:
        pod = self._writer.get(call.resource, call.namespace, call.name).obj
        text = self._logs.read(pod, call.query("container"))
        tail = call.query("tailLines")
        if tail:
            lines = text.splitlines(keepends=True)
            text = b"".join(lines[-int(tail) :] if int(tail) else [])
        limit = call.query("limitBytes")
        if limit:
            text = text[: int(limit)]
        if call.flag("timestamps"):
            stamp = (pod.get("status") or {}).get("startTime") or pod["metadata"]["creationTimestamp"]
            prefix = stamp.replace("Z", ".000000000Z").encode() + b" "
            text = b"".join(prefix + line for line in text.splitlines(keepends=True))
        return web.Response(body=text, content_type="text/plain")


def _same_name(call: Call, body: Obj) -> None:
    """A binding or an eviction names the pod that it is sent to (pkg/registry/core/pod/storage)."""
    if dig(body, "metadata", "name") != call.name:
        kind = call.resource.subresources[call.subresource][0]
        raise errors.bad_request(f"name in URL does not match name in {kind} object")
