"""A client that retries: kubelets outlive an API server that restarts or misbehaves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp

from sandbox.kube.client import Kube
from sandbox.kube.resources import ApiError

log = logging.getLogger("sandbox.nodes")

#: Real seconds between two attempts, and their number: two minutes in total.
PAUSE, ATTEMPTS = 0.5, 240


class RetryingKube(Kube):
    """Retries requests after a broken connection, 429 or 5xx. Shares everything else with ``kube``.

    Only for callers whose requests may be repeated: names are given, never generated.
    """

    def __init__(self, kube: Kube) -> None:
        self.__dict__ = kube.__dict__

    async def raw(self, method: str, path: str, **request: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await super().raw(method, path, **request)
            except ApiError as error:
                if (error.code < 500 and error.code != 429) or error.code == 501 or attempt == ATTEMPTS:
                    raise
                log.debug("%s %s: %s", method, path, error)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                if attempt == ATTEMPTS:
                    raise
                log.debug("%s %s: %r", method, path, error)
            await asyncio.sleep(PAUSE)
        raise AssertionError("the last attempt returns or raises")
