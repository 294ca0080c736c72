"""The verbs create, update, patch, delete and deletecollection."""

from __future__ import annotations

import contextlib

from aiohttp import web

from sandbox.apiserver import errors
from sandbox.apiserver.access import reviews
from sandbox.apiserver.access.auth import ServiceAccountTokens
from sandbox.apiserver.access.rbac import Authorizer
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, clone, dig
from sandbox.apiserver.requests import messages, patching, subresources
from sandbox.apiserver.requests.reading import Reading
from sandbox.apiserver.requests.representations import negotiation
from sandbox.apiserver.requests.representations.negotiation import Representation
from sandbox.apiserver.requests.routing import Call
from sandbox.apiserver.requests.subresources import PodLogs
from sandbox.apiserver.storage.writer import Writer
from sandbox.apiserver.store import Record


class Writing:
    def __init__(
        self, writer: Writer, reading: Reading, authorizer: Authorizer, tokens: ServiceAccountTokens, logs: PodLogs
    ) -> None:
        self._writer = writer
        self._reading = reading
        self._authorizer = authorizer
        self._tokens = tokens
        self._logs = logs

    async def create(self, call: Call) -> web.Response:
        if call.name:
            raise errors.method_not_allowed()
        options = messages.options(call)
        body = await messages.body(call, options)
        if call.resource.kind in reviews.KINDS and not call.resource.custom:
            return messages.reply(reviews.answer(call.resource, body, call.user, self._authorizer), 201)
        if call.resource.kind == "TokenReview":
            user = self._tokens.user(str((body.get("spec") or {}).get("token", "")))
            status = {"authenticated": user is not None, **({"user": user.info()} if user else {})}
            return messages.reply({**body, "status": status}, 201)
        if call.resource.kind == "Binding":
            pods = self._writer.registry.builtin("pods")
            name = str(dig(body, "metadata", "name") or "")
            return messages.reply(subresources.bind(self._writer, pods, call.namespace, name, body, options), 201)
        if call.resource.namespaced and not call.namespace:
            raise errors.method_not_allowed()
        record = self._writer.create(call.resource, call.namespace, body, options)
        return messages.written(call, record, 201)

    async def update(self, call: Call) -> web.Response:
        options = messages.options(call)
        body = await messages.body(call, options)
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
        return messages.written(call, record)

    async def patch(self, call: Call) -> web.Response:
        raw = await call.http.read()
        kind = negotiation.media_type(call.http.headers.get("Content-Type", ""))
        accepted = patching.formats(call.resource)
        if kind not in accepted:
            raise errors.unsupported_media_type(accepted)
        options = messages.options(call)
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
            return messages.written(call, record, 201 if created else 200)
        if call.query("force"):
            detail = errors.forbidden_value("force", "may not be specified for non-apply patch")
            raise ApiError(422, "Invalid", f'PatchOptions.meta.k8s.io "" is invalid: {detail}')
        modify = patching.modifier(self._writer, call.resource, kind, raw, options)
        record, _ = self._writer.update(
            call.resource, call.namespace, call.name, modify, options, subresource=call.subresource
        )
        return messages.written(call, record)

    # ---- deleting

    async def _delete_options(self, call: Call) -> tuple[Obj, bool]:
        raw = await call.http.read()
        header = call.http.headers.get("Content-Type", messages.JSON)
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

    async def delete(self, call: Call) -> web.Response:
        options, dry_run = await self._delete_options(call)
        obj, gone = self._writer.delete(call.resource, call.namespace, call.name, options, dry_run=dry_run)
        if gone and call.resource.kind == "Pod" and not dry_run:
            self._logs.forget(obj)
        if not gone or call.resource.kind in ("Pod", "ServiceAccount", "ResourceQuota", "PersistentVolumeClaim"):
            return messages.reply(obj)
        details: Obj = {"name": call.name, "kind": call.resource.plural, "uid": obj["metadata"]["uid"]}
        if call.resource.group:
            details["group"] = call.resource.group
        return messages.reply(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        )

    async def delete_collection(self, call: Call) -> web.Response:
        options, dry_run = await self._delete_options(call)
        deleted = []
        for record in self._reading.selected(call):
            with contextlib.suppress(KeyError):
                obj, _ = self._writer.delete(
                    call.resource, record.namespace, record.name, clone(options), dry_run=dry_run
                )
                deleted.append(Record(obj, record.revision))
        metadata = {"resourceVersion": str(self._writer.store.revision)}
        return messages.reply(Representation(messages.JSON).many(call.resource, deleted, metadata))
