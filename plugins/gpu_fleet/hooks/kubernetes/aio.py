"""The asynchronous, read-only Kubernetes client of triggers: list, watch and get over one aiohttp session.

The one write of a trigger, the first aid to a node, is in a module of its own (``hooks/kubernetes/first_aid.py``).

Nothing here blocks the triggerer's event loop: what may (EKS, STS credentials, names) runs in a thread of the region's
own (``hooks/kubernetes/endpoints.py``), and a caller that waits for it gives up after a while with an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from gpu_fleet.core.errors import ApiUnavailable, GpuFleetError, Unauthorized
from gpu_fleet.core.kubernetes.kinds import ObjectRef
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes import endpoints as kubernetes_endpoints
from gpu_fleet.hooks.kubernetes.access import ClusterAccess
from gpu_fleet.hooks.kubernetes.credentials import Endpoint
from gpu_fleet.hooks.kubernetes.errors import EXPIRED, ApiNotFound, error_for, parse_status
from gpu_fleet.hooks.kubernetes.paths import PAGE_SIZE, Json, object_path, selectors, typed
from gpu_fleet.hooks.kubernetes.transport import query_string, seconds_ahead

#: The server ends a watch after this many seconds; the next one continues from the last resourceVersion.
WATCH_TIMEOUT_S = 280
#: Without a byte for so long (the server sends a bookmark about every 60 s) the connection counts as dead.
WATCH_SILENCE_S = 100.0
CALL_TIMEOUT_S = 30.0
#: Seconds for everything until a response begins, look-ups and connection included: a watch that is not open by then
#: is blind and reports that.
OPEN_TIMEOUT_S = 30.0
CLOSING_TURNS = 10


class AsyncKubeClient:
    """One cluster's API for one trigger. Close it on every exit."""

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access
        self._session: Any = None
        self._ahead = 0.0
        #: Which server has listed a query's objects: the resourceVersion of a list means nothing to another one.
        self._listed_by: dict[KubeQuery, str] = {}

    def now(self) -> float:
        """Epoch seconds by the API server's clock, as of its last answer; by this machine's before the first one.

        What is compared with time stamps of the cluster must be of the cluster, see the synchronous client's.
        """
        return time.time() + self._ahead

    async def get(self, ref: ObjectRef) -> Json | None:
        """The object, or ``None`` if it is absent."""
        try:
            found, _ = await self._call(object_path(ref.kind, ref.namespace, ref.name), {}, f"get {ref}")
            return found
        except ApiNotFound:
            return None

    async def list(self, query: KubeQuery) -> tuple[list[Json], str]:
        """The objects that match and the resourceVersion to watch from (empty if the server lacks the kind)."""
        items: list[Json] = []
        parameters: dict[str, Any] = {
            "limit": PAGE_SIZE,
            **_selected(query),
        }
        what, server = f"list {query.kind.plural}", ""
        while True:
            try:
                page, server = await self._call(query.kind.path(query.namespace), parameters, what, only=server)
            except ApiNotFound:
                return [], ""
            items.extend(typed(item, query.kind) for item in page.get("items") or [])
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                self._listed_by[query] = server
                return items, str(metadata.get("resourceVersion") or "")
            parameters["continue"] = metadata["continue"]

    async def watch(self, query: KubeQuery, resource_version: str) -> AsyncIterator[tuple[str, Json]]:
        """Changes after ``resource_version`` as ``(type, object)``: ADDED, MODIFIED, DELETED or BOOKMARK.

        Ends when the server ends the watch.

        :raises ApiUnavailable: with reason ``Expired`` if the version is too old, or of another server than the one
            that the cluster's address leads to by now: list again.
        """
        parameters = {
            "watch": True,
            "allowWatchBookmarks": True,
            "timeoutSeconds": WATCH_TIMEOUT_S,
            "resourceVersion": resource_version,
            **_selected(query),
        }
        what = f"watch {query.kind.plural}"
        server = self._listed_by.get(query, "")
        async with _Stream(self, query.kind.path(query.namespace), parameters, what, server) as lines:
            async for line in lines:
                event = json.loads(line)
                content = event.get("object") or {}
                if event.get("type") == "ERROR":
                    raise error_for(what, int(content.get("code") or 500), content)
                yield str(event.get("type")), typed(content, query.kind)

    async def close(self) -> None:
        """Close the connections; harmless to repeat."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            # A TLS connection is closed by the event loop's next turns; a loop that ends before them leaves its socket.
            for _ in range(CLOSING_TURNS):
                await asyncio.sleep(0)

    # --- transport ---------------------------------------------------------------------------------------------

    async def _call(
        self, path: str, parameters: Mapping[str, Any], what: str, *, only: str = "", merge: Json | None = None
    ) -> tuple[Json, str]:
        """The answer and the server that gave it; ``only`` and ``merge`` as in :meth:`_open`."""
        import aiohttp

        limits = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=5)
        response, server = await self._open(path, parameters, what, limits, only, merge)
        async with response:
            try:
                value: Json = json.loads(await response.read())
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise ApiUnavailable(f"{what}: the answer broke off: {error or type(error).__name__}") from error
            return value, server

    async def _open(
        self,
        path: str,
        parameters: Mapping[str, Any],
        what: str,
        limits: Any,
        only: str = "",
        merge: Json | None = None,
    ) -> tuple[Any, str]:
        """A successful response, with one fresh token after a 401, and the server that gave it.

        :param only: the server to ask, for what continues an earlier answer; whichever it is now, if empty.
        :param merge: a merge patch to send; ``None`` only reads.
        :raises ApiUnavailable: also if there is none within :data:`OPEN_TIMEOUT_S`; with reason ``Expired`` if the
            cluster has another address than ``only`` by now.
        """
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                for attempt in (1, 2):
                    endpoint = await kubernetes_endpoints.endpoint_of(self.access)
                    if only and endpoint.server != only:
                        raise ApiUnavailable(f"{what}: {self.access} is at another address now", reason=EXPIRED)
                    identity = await kubernetes_endpoints.headers_of(self.access, endpoint)
                    try:
                        response = await self._open_once(endpoint, identity, path, parameters, what, limits, merge)
                        return response, endpoint.server
                    except Unauthorized:
                        if attempt == 2 or not await kubernetes_endpoints.renewed(self.access, endpoint, identity):
                            # The cluster may have been recreated: look it up again before the next call.
                            kubernetes_access.forget(self.access, endpoint)
                            raise
        except TimeoutError as error:
            raise ApiUnavailable(f"{what}: no answer of {self.access} within {OPEN_TIMEOUT_S:.0f} s") from error
        raise AssertionError("unreachable")

    async def _open_once(
        self,
        endpoint: Endpoint,
        identity: Mapping[str, str],
        path: str,
        parameters: Mapping[str, Any],
        what: str,
        limits: Any,
        merge: Json | None,
    ) -> Any:
        import aiohttp
        from yarl import URL

        if self._session is None:
            connector = kubernetes_endpoints.connector(self.access)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=True, auto_decompress=True)
        headers = {"Accept": "application/json", "User-Agent": "gpu-fleet", **identity}
        content = None
        if merge is not None:
            headers["Content-Type"] = "application/merge-patch+json"
            content = json.dumps(merge).encode()
        url = URL(endpoint.server + path + query_string(parameters), encoded=True)
        try:
            response = await self._session.request(
                "GET" if merge is None else "PATCH",
                url,
                data=content,
                headers=headers,
                ssl=endpoint.ssl_context or False,
                timeout=limits,
                allow_redirects=False,
            )
            self._ahead = seconds_ahead(response.headers.get("Date"), time.time())
            if response.status < 400:
                return response
            async with response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            kubernetes_access.forget(self.access, endpoint)
            raise ApiUnavailable(
                f"{what}: cannot talk to {endpoint.server} ({self.access}): {error or type(error).__name__}"
            ) from error
        raise error_for(what, response.status, parse_status(body), response.headers)


class _Stream:
    """The lines of a watch response; objects may be larger than any line limit, so lines are cut here."""

    def __init__(self, client: AsyncKubeClient, path: str, parameters: Mapping[str, Any], what: str, only: str) -> None:
        self._client, self._path, self._parameters, self._what, self._only = client, path, parameters, what, only
        self._response: Any = None

    async def __aenter__(self) -> AsyncIterator[bytes]:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=WATCH_SILENCE_S)
        self._response, _ = await self._client._open(self._path, self._parameters, self._what, limits, self._only)
        return self._lines()

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            # The rest of the watch is of no interest: without waiting for the server's part in ending TLS.
            connection = self._response.connection
            if connection is not None and connection.transport is not None:
                with contextlib.suppress(AttributeError):  # CPython before 3.11.8, see python/cpython#113214
                    connection.transport.abort()
            self._response.close()

    async def _lines(self) -> AsyncIterator[bytes]:
        import aiohttp

        rest = b""
        try:
            async for chunk in self._response.content.iter_any():
                rest += chunk
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    if line.strip():
                        yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broken(self._what, error) from error


def _selected(query: KubeQuery) -> dict[str, str]:
    return selectors(query.name, query.label_selector, query.field_selector)


def _broken(what: str, error: BaseException) -> GpuFleetError:
    return ApiUnavailable(f"{what}: the connection broke: {error or type(error).__name__}", reason="WatchBroken")
