"""Container output on its way to the API server, which serves it as ``pods/log``.

A real kubelet serves logs itself and the API server fetches them from it. The sandbox's kubelets have no server: they
PUT what there is to the sandbox's API server. Another API server refuses that, once, and is not asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import aiohttp

from sandbox.kube import Kube
from sandbox.resources import ApiError

log = logging.getLogger("sandbox.nodes")

#: Real seconds between two uploads of one container's log.
PAUSE = 0.3


class LogUploader:
    """Uploads the newest output of containers that changed."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._pending: dict[tuple[str, str, str, str], Callable[[], str]] = {}
        self._wake = asyncio.Event()

    def changed(self, pod: dict[str, Any], container: str, output: Callable[[], str]) -> None:
        meta = pod["metadata"]
        self._pending[meta["namespace"], meta["name"], meta["uid"], container] = output
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, {}
            for (namespace, name, _, container), output in pending.items():
                path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
                try:
                    await self._kube.raw(
                        "PUT",
                        path,
                        query={"container": container},
                        body=output().encode(),
                        content_type="text/plain",
                    )
                except ApiError as error:
                    if error.code in (403, 405, 415, 501):
                        log.info("this API server does not take container logs: %s", error)
                        return
                except (aiohttp.ClientError, OSError, TimeoutError):
                    self._pending.setdefault((namespace, name, _, container), output)
            with contextlib.suppress(TimeoutError):
                await asyncio.sleep(PAUSE)
