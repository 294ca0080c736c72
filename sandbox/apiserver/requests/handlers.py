"""Verbs on resources: what happens to an authorised request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json

from aiohttp import web

from sandbox.apiserver import errors
from sandbox.apiserver.access import reviews
from sandbox.apiserver.access.auth import ServiceAccountTokens
from sandbox.apiserver.access.rbac import Authorizer
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, clone, dig, dumps
from sandbox.apiserver.patches import formats as patch
from sandbox.apiserver.requests import negotiation, patching, subresources
from sandbox.apiserver.requests.negotiation import Representation
from sandbox.apiserver.requests.routing import Call
from sandbox.apiserver.requests.subresources import PodLogs
from sandbox.apiserver.requests.watch import Stream, WatchOptions
from sandbox.apiserver.rules import selectors
from sandbox.apiserver.storage.writer import Options, Writer
from sandbox.apiserver.store import Record, Store
from sandbox.settings import Clock

_JSON = "application/json"
_BLOCKED = 3.0  # seconds that a read waits for a revision that is not there yet
MAX_BODY = 3 * 1024 * 1024  # apiserver: 'Request entity too large: limit is 3145728'


def reply(body: Obj | bytes, code: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    encoded = body if isinstance(body, bytes) else dumps(body)
    return web.Response(body=encoded, status=code, content_type=_JSON, headers=headers)


def _warning_headers(call: Call, response: web.Response) -> web.Response:
    for text in dict.fromkeys(call.warnings):
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{escaped}"')
    return response


class Handlers:
    def __init__(
        self,
        store: Store,
        writer: Writer,
        authorizer: Authorizer,
        tokens: ServiceAccountTokens,
        logs: PodLogs,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._store = store
        self._writer = writer
        self._authorizer = authorizer
        self._tokens = tokens
        self._logs = logs

    async def handle(self, call: Call) -> web.StreamResponse:
        if call.subresource and call.subresource != "status":
            return await self._subresource(call)
        if call.verb not in call.resource.verbs:
            raise errors.method_not_allowed()
        if call.verb in ("update", "patch") and not call.name:
            # Custom resources have no routes by method (apiextensions-apiserver customresource_handler.go).
            raise errors.bad_request("name must be provided") if call.resource.custom else errors.method_not_allowed()
        if call.resource.custom:
            selected = call.query("labelSelector") or self._fields(call)
            past_cache = bool(call.number("limit")) and not selected
            await self._writer.definitions.admit(call.resource, call.verb, delegated=past_cache)
        match call.verb:
            case "get":
                await self._reach(call)
                return self._get(call)
            case "list":
                await self._reach(call)
                return self._list(call)
            case "watch":
                return await self._watch(call)
            case "create":
                return await self._create(call)
            case "update":
                return await self._update(call)
            case "patch":
                return await self._patch(call)
            case "delete":
                return await self._delete(call)
            case "deletecollection":
                return await self._delete_collection(call)
            case _:
                raise errors.method_not_allowed()

    # ---- reading

    def _representation(self, call: Call) -> Representation:
        return Representation(call.http.headers.get("Accept", ""), call.query("includeObject"))

    async def _reach(self, call: Call) -> None:
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

    def _get(self, call: Call) -> web.Response:
        record = self._writer.get(call.resource, call.namespace, call.name)
        return reply(self._representation(call).one(call.resource, record))

    def _scope(self, call: Call) -> str | None:
        return call.namespace if call.resource.namespaced and call.namespace else None

    def _fields(self, call: Call) -> str:
        """The field selector; a name in the path of a watch is one too."""
        fields = call.query("fieldSelector")
        if call.name:
            fields = ",".join(filter(None, (fields, f"metadata.name={call.name}")))
        return fields

    def _selected(self, call: Call) -> list[Record]:
        wanted = selectors.parse(call.query("labelSelector"), self._fields(call), call.resource)
        records = self._store.list(call.resource.storage, self._scope(call))
        if wanted is not None:
            records = [record for record in records if wanted(record.obj)]
        return [self._writer.versioned(call.resource, record) for record in records]

    def _list(self, call: Call) -> web.Response:
        records = self._selected(call)
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
        return reply(self._representation(call).many(call.resource, records, metadata))

    async def _watch(self, call: Call) -> web.StreamResponse:
        call.number("timeoutSeconds")
        options = WatchOptions(dict(call.http.query))
        wanted = selectors.parse(call.query("labelSelector"), self._fields(call), call.resource)
        representation = self._representation(call)
        stream = Stream(self._store, call.resource, self._scope(call), wanted, options, representation)
        response = web.StreamResponse(headers={"Content-Type": _JSON})
        response.enable_chunked_encoding()
        await response.prepare(call.http)
        # A client that disconnects, or a server that closes, ends the watch without an error.
        with contextlib.suppress(ConnectionResetError, asyncio.CancelledError):
            async for line in stream.events():
                await response.write(line)
            await response.write_eof()
        return response

    # ---- writing

    def _options(self, call: Call) -> Options:
        return Options(
            user=call.user,
            manager=call.manager,
            dry_run=call.dry_run,
            validation=call.field_validation,
            force=call.flag("force"),
            warnings=call.warnings,
        )

    async def _body(self, call: Call, options: Options | None = None) -> Obj:
        """The object that the request carries; what its text repeats is noted in ``options``."""
        kind = call.resource.subresources.get(call.subresource, (call.resource.kind,))[0]
        raw = await call.http.read()
        body, repeated = negotiation.decode(raw, call.http.headers.get("Content-Type", _JSON), kind)
        if options is not None:
            options.repeated = [f'duplicate field "{path}"' for path in repeated]
        return body

    async def _create(self, call: Call) -> web.Response:
        if call.name:
            raise errors.method_not_allowed()
        options = self._options(call)
        body = await self._body(call, options)
        if call.resource.kind in reviews.KINDS and not call.resource.custom:
            return reply(reviews.answer(call.resource, body, call.user, self._authorizer), 201)
        if call.resource.kind == "TokenReview":
            user = self._tokens.user(str((body.get("spec") or {}).get("token", "")))
            status = {"authenticated": user is not None, **({"user": user.info()} if user else {})}
            return reply({**body, "status": status}, 201)
        if call.resource.kind == "Binding":
            pods = self._writer.registry.builtin("pods")
            name = str(dig(body, "metadata", "name") or "")
            return reply(subresources.bind(self._writer, pods, call.namespace, name, body, options), 201)
        if call.resource.namespaced and not call.namespace:
            raise errors.method_not_allowed()
        record = self._writer.create(call.resource, call.namespace, body, options)
        return self._written(call, record, 201)

    def _written(self, call: Call, record: Record, code: int = 200) -> web.Response:
        call.written = record
        return _warning_headers(call, reply(self._representation(call).one(call.resource, record), code))

    async def _update(self, call: Call) -> web.Response:
        options = self._options(call)
        body = await self._body(call, options)
        self._writer.check_type(call.resource, body)
        if not body["metadata"].get("name"):
            raise errors.bad_request(
                f"the name of the object ({call.name} based on URL) was undeterminable: name must be provided"
            )
        namespace = body["metadata"].get("namespace")
        if namespace and call.resource.namespaced and namespace != call.namespace:
            text = "the namespace of the provided object does not match the namespace sent on the request"
            raise errors.bad_request(text)
        body = self._writer.check_fields(call.resource, body, options)
        record, _ = self._writer.update(
            call.resource, call.namespace, call.name, lambda _: body, options, subresource=call.subresource, put=True
        )
        return self._written(call, record)

    async def _patch(self, call: Call) -> web.Response:
        raw = await call.http.read()
        kind = negotiation.media_type(call.http.headers.get("Content-Type", ""))
        accepted = patching.formats(call.resource)
        if kind not in accepted:
            raise errors.unsupported_media_type(accepted)
        options = self._options(call)
        if kind == patching.APPLY:
            if not call.query("fieldManager"):
                detail = errors.required("fieldManager", "is required for apply patch")
                raise ApiError(422, "Invalid", f'PatchOptions.meta.k8s.io "" is invalid: {detail}')
            config = negotiation.parse_yaml(raw)
            if not isinstance(config, dict):
                raise errors.bad_request("error decoding YAML: the applied configuration is no object")
            record, created = self._writer.apply(
                call.resource, call.namespace, call.name, config, options, call.subresource
            )
            return self._written(call, record, 201 if created else 200)
        if call.query("force"):
            detail = errors.forbidden_value("force", "may not be specified for non-apply patch")
            raise ApiError(422, "Invalid", f'PatchOptions.meta.k8s.io "" is invalid: {detail}')
        modify = patching.modifier(self._writer, call.resource, kind, raw, options)
        record, _ = self._writer.update(
            call.resource, call.namespace, call.name, modify, options, subresource=call.subresource
        )
        return self._written(call, record)

    # ---- deleting

    async def _delete_options(self, call: Call) -> tuple[Obj, bool]:
        raw = await call.http.read()
        header = call.http.headers.get("Content-Type", _JSON)
        options: Obj = {}
        if raw.strip():
            options, _ = negotiation.decode(raw, header)
        if (grace := call.number("gracePeriodSeconds")) is not None:
            options["gracePeriodSeconds"] = grace
        if call.query("propagationPolicy"):
            options["propagationPolicy"] = call.query("propagationPolicy")
        if "orphanDependents" in call.http.query:
            options["orphanDependents"] = call.flag("orphanDependents")
        dry_run = call.dry_run or "All" in (options.get("dryRun") or [])
        return options, dry_run

    async def _delete(self, call: Call) -> web.Response:
        options, dry_run = await self._delete_options(call)
        obj, gone = self._writer.delete(call.resource, call.namespace, call.name, options, dry_run=dry_run)
        if gone and call.resource.kind == "Pod" and not dry_run:
            self._logs.forget(obj)
        if not gone or call.resource.kind in ("Pod", "ServiceAccount", "ResourceQuota", "PersistentVolumeClaim"):
            return reply(obj)
        details: Obj = {"name": call.name, "kind": call.resource.plural, "uid": obj["metadata"]["uid"]}
        if call.resource.group:
            details["group"] = call.resource.group
        return reply({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    async def _delete_collection(self, call: Call) -> web.Response:
        options, dry_run = await self._delete_options(call)
        deleted = []
        for record in self._selected(call):
            with contextlib.suppress(KeyError):
                obj, _ = self._writer.delete(
                    call.resource, record.namespace, record.name, clone(options), dry_run=dry_run
                )
                deleted.append(Record(obj, record.revision))
        metadata = {"resourceVersion": str(self._store.revision)}
        return reply(Representation(_JSON).many(call.resource, deleted, metadata))

    # ---- subresources

    async def _subresource(self, call: Call) -> web.StreamResponse:
        match call.subresource, call.verb:
            case "eviction", "create":
                body = await self._body(call)
                _same_name(call, body)
                arguments = (call.resource, call.namespace, call.name, body, self._options(call))
                return reply(subresources.evict(self._writer, *arguments), 201)
            case "binding", "create":
                body = await self._body(call)
                _same_name(call, body)
                arguments = (call.resource, call.namespace, call.name, body, self._options(call))
                return reply(subresources.bind(self._writer, *arguments), 201)
            case "token", "create":
                body = await self._body(call)
                issued = subresources.issue_token(
                    self._writer, call.resource, call.namespace, call.name, body, self._tokens
                )
                return reply(issued, 201)
            case "finalize", "update":
                body = await self._body(call)
                record = subresources.finalize_namespace(
                    self._writer, call.resource, call.name, body, self._options(call)
                )
                return self._written(call, record)
            case "log", "get":
                return self._log(call)
            case "log", "update":
                pod = self._writer.get(call.resource, call.namespace, call.name).obj
                container = call.query("container") or pod["spec"]["containers"][0]["name"]
                self._logs.put(pod, container, await call.http.read())
                return reply({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
            case "scale", _:
                return await self._scale(call)
            case _:
                raise errors.method_not_allowed()

    async def _scale(self, call: Call) -> web.Response:
        current = subresources.read_scale(self._writer, call.resource, call.namespace, call.name)
        if call.verb == "get":
            return reply(current)
        if call.verb == "update":
            wanted = await self._body(call)
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
        arguments = (call.resource, call.namespace, call.name, wanted, self._options(call))
        return reply(subresources.write_scale(self._writer, *arguments))

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
