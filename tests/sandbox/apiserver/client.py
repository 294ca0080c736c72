"""A bare HTTP client for the tests: what goes over the wire is what the test says."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Obj = dict[str, Any]
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True)
class Reply:
    code: int
    text: str
    headers: Any

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    @property
    def reason(self) -> str:
        return str(self.body.get("reason", ""))

    @property
    def message(self) -> str:
        return str(self.body["message"])

    @property
    def causes(self) -> list[Obj]:
        return list(self.body.get("details", {}).get("causes", []))


def _named(document: Obj, kind: str, name: str) -> Obj:
    found: Obj = next(item[kind] for item in document[f"{kind}s"] if item["name"] == name)
    return found


def _content(part: Obj, key: str, folder: Path) -> bytes | None:
    """What a kubeconfig holds itself (``…-data``), or the file that it names."""
    if f"{key}-data" in part:
        return base64.b64decode(part[f"{key}-data"])
    return (folder / part[key]).read_bytes() if key in part else None


def access(kubeconfig: Path) -> tuple[str, ssl.SSLContext, Obj]:
    """(URL, context with the client certificate, headers with the token) of a kubeconfig's current context."""
    document, folder = yaml.safe_load(kubeconfig.read_text()), kubeconfig.parent
    current = _named(document, "context", document["current-context"])
    cluster, user = _named(document, "cluster", current["cluster"]), _named(document, "user", current["user"])
    authority = _content(cluster, "certificate-authority", folder)
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    certificate, key = _content(user, "client-certificate", folder), _content(user, "client-key", folder)
    if certificate and key:
        with tempfile.NamedTemporaryFile() as both:
            both.write(certificate + b"\n" + key)
            both.flush()
            context.load_cert_chain(both.name)
    headers = {"Authorization": f"Bearer {user['token']}"} if user.get("token") else {}
    return cluster["server"], context, headers


def tls_context(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """(URL, context with the client certificate) of a kubeconfig."""
    url, context, _ = access(kubeconfig)
    return url, context


class Api:
    def __init__(self, session: aiohttp.ClientSession, url: str, context: ssl.SSLContext, headers: Obj) -> None:
        self._session = session
        self._url = url
        self._context = context
        self._headers = headers

    def there(self, path: str) -> str:
        """A path as the server knows it."""
        return path

    def here(self, text: str) -> str:
        """What the server says, as the test knows it."""
        return text

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """``body``: bytes as they are, anything else as JSON. Header names with ``_`` for ``-``."""
        sent = {**self._headers, **{key.replace("_", "-"): value for key, value in headers.items()}}
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        stream = None if data is None else io.BytesIO(data)
        async with self._session.request(
            method, self._url + self.there(path), data=stream, headers=sent, ssl=self._context
        ) as response:
            return Reply(response.status, self.here(await response.text()), response.headers)

    async def get(self, path: str, **headers: str) -> Reply:
        return await self.call("GET", path, **headers)

    async def post(self, path: str, body: Any, **headers: str) -> Reply:
        return await self.call("POST", path, body, **headers)

    async def put(self, path: str, body: Any) -> Reply:
        return await self.call("PUT", path, body)

    async def patch(self, path: str, body: Any, kind: str = MERGE) -> Reply:
        return await self.call("PATCH", path, body, Content_Type=kind)

    async def apply(self, path: str, body: Any, manager: str = "m", query: str = "") -> Reply:
        return await self.patch(f"{path}?fieldManager={manager}{query}", body, APPLY)

    async def delete(self, path: str, body: Any = None) -> Reply:
        return await self.call("DELETE", path, body)

    @asynccontextmanager
    async def watch(self, path: str) -> AsyncIterator[Watch]:
        async with self._session.get(
            self._url + self.there(path),
            headers=self._headers,
            ssl=self._context,
            timeout=aiohttp.ClientTimeout(total=20),
        ) as response:
            yield Watch(response)


class Watch:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> tuple[str, Obj]:
        line = await asyncio.wait_for(self._response.content.readline(), 10)
        event = json.loads(line)
        return event["type"], event["object"]

    async def take(self, count: int) -> list[tuple[str, str]]:
        """(type, name) of the next events."""
        events = [await self.next() for _ in range(count)]
        return [(kind, obj["metadata"].get("name", "")) for kind, obj in events]

    async def rest(self) -> bytes:
        """What still comes until the server ends the watch."""
        return await asyncio.wait_for(self._response.content.read(), 10)


@asynccontextmanager
async def connect(kubeconfig: Path, **headers: str) -> AsyncIterator[Api]:
    url, context = tls_context(kubeconfig)
    async with aiohttp.ClientSession() as session:
        yield Api(session, url, context, {key.replace("_", "-"): value for key, value in headers.items()})


async def until(api: Api, path: str, holds: Callable[[Reply], bool]) -> Reply:
    """The first reply that is as wanted."""
    deadline = asyncio.get_running_loop().time() + 20
    while not holds(reply := await api.get(path)):
        assert asyncio.get_running_loop().time() < deadline, f"{path} never came to be: {reply.code} {reply.text}"
        await asyncio.sleep(0.01)
    return reply


def _established(reply: Reply) -> bool:
    conditions = reply.body["status"].get("conditions") or []
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


async def define(api: Api, body: Obj) -> None:
    """Create a CustomResourceDefinition and wait until its objects can be listed."""
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    reply = await api.post(definitions, body)
    assert reply.code == 201, reply.text
    await until(api, f"{definitions}/{body['metadata']['name']}", _established)
    spec = body["spec"]
    served = next(version["name"] for version in spec["versions"] if version["served"])
    await until(api, f"/apis/{spec['group']}/{served}/{spec['names']['plural']}", lambda reply: reply.code == 200)
