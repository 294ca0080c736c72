"""A small asynchronous wrapper over boto3: calls run in a thread pool, clients are made once per service."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# What moto accepts from anyone who talks to it directly. The shim (the address that users get) knows only real keys.
DIRECT_KEY = "sandbox-direct"

#: Part of the User-Agent, by which the audit log distinguishes the sandbox's own calls from a user's.
USER_AGENT = "gpu-fleet-sandbox"

_THREADS = 4
_session_lock = threading.Lock()


class Aws:
    """
    AWS calls against one endpoint.

    :param endpoint_url: one address for all services, ``http://127.0.0.1:PORT``.
    :param region: AWS region.
    :param access_key_id: credentials to sign with; the default is good for moto's own port only.
    :param secret_access_key: the secret of that key.
    """

    def __init__(
        self, endpoint_url: str, region: str, access_key_id: str = DIRECT_KEY, secret_access_key: str = DIRECT_KEY
    ) -> None:
        self.endpoint_url = endpoint_url
        self.region = region
        self._credentials = (access_key_id, secret_access_key)
        self._clients: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="aws")

    def client(self, service: str) -> Any:
        """The boto3 client of a service (thread-safe, as boto3 clients are; making one is not, hence the lock)."""
        with _session_lock:
            if service not in self._clients:
                import boto3
                from botocore.config import Config

                self._clients[service] = boto3.session.Session().client(
                    service,
                    region_name=self.region,
                    endpoint_url=self.endpoint_url,
                    aws_access_key_id=self._credentials[0],
                    aws_secret_access_key=self._credentials[1],
                    config=Config(
                        connect_timeout=5,
                        read_timeout=30,
                        retries={"max_attempts": 3, "mode": "standard"},
                        user_agent_extra=USER_AGENT,
                    ),
                )
            return self._clients[service]

    async def call(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        """
        One API call.

        :param service: boto3 service name, ``ec2``.
        :param operation: boto3 method name, ``describe_instances``.
        :raises botocore.exceptions.ClientError: as boto3 does.
        """
        reply: dict[str, Any] = await self._run(lambda: getattr(self.client(service), operation)(**params))
        return reply

    async def paginate(self, service: str, operation: str, path: str, **params: Any) -> list[Any]:
        """
        All items of a paginated call.

        :param path: JMESPath of the items in a page, ``Reservations[].Instances[]``.
        """

        def pages() -> list[Any]:
            paginator = self.client(service).get_paginator(operation)
            return list(paginator.paginate(**params).search(path))

        return [item for item in await self._run(pages) if item is not None]

    async def _run(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Lets the threads go; calls in flight end on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)
