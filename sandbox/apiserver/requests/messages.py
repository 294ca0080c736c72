"""What every verb reads from a request and makes an answer of."""

from __future__ import annotations

from aiohttp import web

from sandbox.apiserver.jsontools import Obj, dumps
from sandbox.apiserver.requests.representations import negotiation
from sandbox.apiserver.requests.representations.negotiation import Representation
from sandbox.apiserver.requests.routing import Call
from sandbox.apiserver.storage.options import Options
from sandbox.apiserver.store import Record

JSON = "application/json"
MAX_BODY = 3 * 1024 * 1024  # apiserver: 'Request entity too large: limit is 3145728'


def representation(call: Call) -> Representation:
    return Representation(call.http.headers.get("Accept", ""), call.query("includeObject"))


def options(call: Call) -> Options:
    return Options(
        user=call.user,
        manager=call.manager,
        dry_run=call.dry_run,
        validation=call.field_validation,
        force=call.flag("force"),
        warnings=call.warnings,
    )


async def body(call: Call, noted: Options | None = None) -> Obj:
    """The object that the request carries; what its text repeats is noted in ``noted``."""
    kind = call.resource.subresources.get(call.subresource, (call.resource.kind,))[0]
    raw = await call.http.read()
    decoded, repeated = negotiation.decode(raw, call.http.headers.get("Content-Type", JSON), kind)
    if noted is not None:
        noted.repeated = [f'duplicate field "{path}"' for path in repeated]
    return decoded


def reply(content: Obj | bytes, code: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    encoded = content if isinstance(content, bytes) else dumps(content)
    return web.Response(body=encoded, status=code, content_type=JSON, headers=headers)


def written(call: Call, record: Record, code: int = 200) -> web.Response:
    call.written = record
    return _warning_headers(call, reply(representation(call).one(call.resource, record), code))


def _warning_headers(call: Call, response: web.Response) -> web.Response:
    for text in dict.fromkeys(call.warnings):
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{escaped}"')
    return response
