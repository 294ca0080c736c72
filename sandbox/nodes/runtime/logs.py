"""Container output on its way to the API server, which serves it as ``pods/log``.

A real kubelet serves logs itself and the API server fetches them from it. The sandbox's kubelets have no server: they
PUT what there is to the sandbox's API server. Another API server refuses the first upload, and no more are tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp

from sandbox.kube.client import Kube
from sandbox.kube.resources import ApiError

log = logging.getLogger("sandbox.nodes")

Key = tuple[str, str, str, str]

#: Real seconds between two uploads of one container's log.
PAUSE = 0.3


class LogUploader:
    """Uploads the newest output of containers that changed."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._pending: dict[Key, Callable[[], str]] = {}
        self._refused = False
        self._wake = asyncio.Event()

    def changed(self, pod: dict[str, Any], container: str, output: Callable[[], str]) -> None:
        meta = pod["metadata"]
        self._pending[meta["namespace"], meta["name"], meta["uid"], container] = output
        self._wake.set()

    async def upload(self, pod: dict[str, Any], container: str, output: Callable[[], str]) -> None:
        """At once; who sees a container end must find its whole log."""
        meta = pod["metadata"]
        key = (meta["namespace"], meta["name"], meta["uid"], container)
        self._pending.pop(key, None)
        await self._put(key, output)

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, {}
            for key, output in pending.items():
                await self._put(key, output)
            await asyncio.sleep(PAUSE)

    async def _put(self, key: Key, output: Callable[[], str]) -> None:
        namespace, name, _, container = key
        if self._refused:
            return
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
        query, body = {"container": container}, output().encode()
        try:
            await self._kube.raw("PUT", path, query=query, body=body, content_type="text/plain")
        except ApiError as error:
            if error.code in (403, 405, 415, 501):
                log.info("this API server does not take container logs: %s", error)
                self._refused = True
        except (aiohttp.ClientError, OSError, TimeoutError):
            self._pending.setdefault(key, output)
            self._wake.set()
