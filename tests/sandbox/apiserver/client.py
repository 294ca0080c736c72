"""A bare HTTP client for the tests: what goes over the wire is what the test says."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

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


def tls_context(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """(URL, context with the client certificate) of a kubeconfig that the sandbox wrote."""
    document = json.loads(kubeconfig.read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    if "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as both:
            both.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            both.flush()
            context.load_cert_chain(both.name)
    return cluster["server"], context


class Api:
    def __init__(self, session: aiohttp.ClientSession, url: str, context: ssl.SSLContext, headers: Obj) -> None:
        self._session = session
        self._url = url
        self._context = context
        self._headers = headers

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """``body``: bytes as they are, anything else as JSON. Header names with ``_`` for ``-``."""
        sent = {**self._headers, **{key.replace("_", "-"): value for key, value in headers.items()}}
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        stream = None if data is None else io.BytesIO(data)
        async with self._session.request(
            method, self._url + path, data=stream, headers=sent, ssl=self._context
        ) as response:
            return Reply(response.status, await response.text(), response.headers)

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
            self._url + path, headers=self._headers, ssl=self._context, timeout=aiohttp.ClientTimeout(total=20)
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


@asynccontextmanager
async def connect(kubeconfig: Path, **headers: str) -> AsyncIterator[Api]:
    url, context = tls_context(kubeconfig)
    async with aiohttp.ClientSession() as session:
        yield Api(session, url, context, {key.replace("_", "-"): value for key, value in headers.items()})
