"""Requests to an API server: one connection pool, one identity, answers as JSON and errors as :class:`ApiError`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec

from sandbox.kube.resources import ApiError

#: How often a read is retried after 429, and after how many real seconds; a Retry-After would be too long for a fast
#: sandbox.
_RETRIES, _PAUSE_S = 10, 0.1


class Transport:
    """
    :ivar certificate_authority: of the server, as PEM text, if it is known.
    """

    def __init__(
        self, server: str, *, ssl_context: ssl.SSLContext | None = None, token: str | None = None, user_agent: str
    ) -> None:
        self.server = server.rstrip("/")
        self.user_agent = user_agent
        self.certificate_authority: str | None = None
        self._ssl = ssl_context
        self._headers = {"Accept": "application/json", "User-Agent": user_agent}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None
        self._ended = False

    async def close(self) -> None:
        """Close for good: a task that is still ending must not open another session, which would leak."""
        self._ended = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._ended:
            raise aiohttp.ClientConnectionError(f"the client of {self.server} is closed")
        if self._session is None:
            # Each watch holds a connection for minutes: no limit, or twenty informers would starve the requests.
            connector = aiohttp.TCPConnector(ssl=self._ssl if self._ssl is not None else True, limit=0)
            timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=60)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)
        return self._session

    async def raw(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Any:
        """One request; the decoded JSON (or text) of the answer. A body of bytes is sent unchanged.

        As in client-go, a request that is answered with 429 is retried (client-go v0.36 rest/with_retry.go); here only
        reads.

        :raises ApiError: for every status of 400 and above.
        """
        for _ in range(_RETRIES if method == "GET" else 0):
            try:
                return await self._once(method, path, query=query, body=body, content_type=content_type)
            except ApiError as error:
                if error.code != HTTPStatus.TOO_MANY_REQUESTS:
                    raise
            await asyncio.sleep(_PAUSE_S)
        return await self._once(method, path, query=query, body=body, content_type=content_type)

    async def _once(self, method: str, path: str, *, query: dict[str, Any] | None, body: Any, content_type: str) -> Any:
        data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": content_type}
        url = self.server + path + ("?" + urlencode(query) if query else "")
        async with self._open().request(method, url, data=data, headers=headers) as response:
            content = await response.read()
            if response.status >= 400:
                raise error_of(response.status, content)
            if response.content_type == "application/json":
                return msgspec.json.decode(content)
            return content.decode(errors="replace")

    async def lines(self, path: str, query: dict[str, str], *, silence: float) -> AsyncGenerator[bytes]:
        """The lines of an answer that goes on until the server ends it.

        :param silence: seconds without a byte after which the connection counts as dead.
        :raises ApiError: for every status of 400 and above.
        """
        url = f"{self.server}{path}?{urlencode(query)}"
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=silence)
        async with self._open().get(url, timeout=timeout) as response:
            if response.status >= 400:
                raise error_of(response.status, await response.read())
            pending = b""
            async for chunk in response.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield line


def error_of(code: int, content: bytes) -> ApiError:
    """The error of an answer, by its Status if it carries one."""
    try:
        status = msgspec.json.decode(content)
    except msgspec.DecodeError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        # An unknown API group is answered in plain text: `404 page not found`.
        return ApiError(code, "NotFound" if code == 404 else "", content.decode(errors="replace").strip()[:500])
    return ApiError(code, status.get("reason", ""), status.get("message", ""), status.get("details"))
