"""Keeps a gate's snapshot current: list and watch for Kubernetes, polling for AWS.

Each observer owns the objects of one query. It never gives up on a transient error: it sets :attr:`Observer.error` and
retries, so that the gate can report why it is blind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import ApiUnavailable, GpuFleetError, TransientError
from gpu_fleet.core.queries import AwsQuery, KubeQuery
from gpu_fleet.triggers.looking import observe_aws

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import AsyncKubeClient, ClusterAccess

log = logging.getLogger(__name__)

#: A watch that ends sooner counts as failed: opened again at once, it would be a loop without a pause (client-go v0.36
#: tools/cache/reflector.go, 'very short watch').
SHORT_WATCH_S = 1.0
#: Seconds that a look at AWS may take until the observer counts as blind; the call continues (boto3 repeats it
#: for minutes), and the next look waits for the same one.
AWS_PATIENCE_S = 60.0
#: Seconds between looks at a kind that the server does not have (its CRD may come).
ABSENT_KIND_INTERVAL_S = 2.0
#: Seconds that the objects of an unwatched query (explanations: events, pods) may be old at a judgement.
EXPLANATION_AGE_S = 2.0
#: How many of them one gate lists at the same time: a slow one delays no other, and a gate with a query per node does
#: not flood the API server.
EXPLANATIONS_AT_ONCE = 8


class Observer(ABC):
    """The objects of one query.

    :ivar objects: what was seen last; ``None`` before the first complete look.
    :ivar error: why the objects cannot be seen at the moment.
    """

    def __init__(self, key: str, changed: asyncio.Event) -> None:
        self.key = key
        self.objects: list[dict[str, Any]] | None = None
        self.error: GpuFleetError | None = None
        self._changed = changed

    @abstractmethod
    async def run(self) -> None:
        """Observe until it is cancelled, or until an error that waiting does not cure."""

    async def refresh(self) -> None:
        """Make the objects current before a judgement; only for observers that do not follow changes."""
        return

    def _seen(self, objects: list[dict[str, Any]]) -> None:
        self.objects, self.error = objects, None
        self._changed.set()

    def _blind(self, error: GpuFleetError) -> None:
        self.error = error
        self._changed.set()

    async def _pause(self, failures: int) -> None:
        from gpu_fleet.hooks.kubernetes.transport import backoff_s

        retry_after = getattr(self.error, "retry_after", None)
        await asyncio.sleep(backoff_s(failures) if retry_after is None else max(retry_after, backoff_s(failures)))


class KubeWatcher(Observer):
    """List and watch; lists again when the watch's version is too old (410), or of another server."""

    def __init__(self, query: KubeQuery, client: AsyncKubeClient, changed: asyncio.Event) -> None:
        super().__init__(query.key, changed)
        self._query = query
        self._client = client
        #: Consecutive failures: only a watch that lives resets them, not a list.
        self._failures = 0

    async def run(self) -> None:
        version = ""
        while True:
            try:
                version = await self._follow(version)
            except TransientError as error:
                from gpu_fleet.hooks.kubernetes.errors import is_expired

                if is_expired(error) and not self._failures:
                    self._failures += 1
                    version = ""
                    continue
                self._blind(error)
                await self._pause(self._failures)
                self._failures += 1
                # After an outage the server may have been restored from a backup, so list again.
                version = ""
            except GpuFleetError as error:
                self._blind(error)
                return

    async def _follow(self, version: str) -> str:
        """List if there is no version to continue from, then watch until the server ends the watch.

        :returns: the version to continue from; empty to list first, after a pause, when the watch did not live.
        """
        if not version:
            items, version = await self._client.list(self._query)
            self._known = {_identity(item): item for item in items}
            self._seen(list(self._known.values()))
            if not version:
                self._failures = 0
                await asyncio.sleep(ABSENT_KIND_INTERVAL_S)
                return ""
        begun = time.monotonic()
        try:
            async for kind, content in self._client.watch(self._query, version):
                version = str((content.get("metadata") or {}).get("resourceVersion") or version)
                if kind == "BOOKMARK":
                    continue
                if kind == "DELETED":
                    self._known.pop(_identity(content), None)
                else:
                    self._known[_identity(content)] = content
                self._seen(list(self._known.values()))
        finally:
            lived = time.monotonic() - begun >= SHORT_WATCH_S
            if lived:
                self._failures = 0
        if lived:
            return version
        await self._pause(self._failures)
        self._failures += 1
        return ""


class KubeExplanation(Observer):
    """A query that only explains: listed again before a judgement, not watched."""

    def __init__(self, query: KubeQuery, client: AsyncKubeClient, changed: asyncio.Event) -> None:
        super().__init__(query.key, changed)
        self._query = query
        self._client = client
        self._at = float("-inf")

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def refresh(self) -> None:
        if time.monotonic() - self._at < EXPLANATION_AGE_S:
            return
        try:
            self.objects, _ = await self._client.list(self._query)
            self.error = None
        except GpuFleetError as error:
            # The watched queries decide; without explanations there is only a poorer message.
            log.info("cannot list %s: %s", self._query.kind.plural, error)
            self.objects = self.objects or []
        self._at = time.monotonic()


class AwsPoller(Observer):
    """A polled AWS call, in a thread of its region's own: boto3 blocks."""

    def __init__(self, query: AwsQuery, access: ClusterAccess, changed: asyncio.Event, interval_s: float) -> None:
        super().__init__(query.key, changed)
        self._query = query
        self._access = access
        self._interval_s = interval_s

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                self._seen(await self._look())
                failures = 0
                await asyncio.sleep(self._interval_s)
            except TransientError as error:
                self._blind(error)
                await self._pause(failures)
                failures += 1
            except GpuFleetError as error:
                self._blind(error)
                return

    async def _look(self) -> list[dict[str, Any]]:
        """
        :raises ApiUnavailable: also if the connection cannot be read, or AWS has not answered within
            :data:`AWS_PATIENCE_S`.
        """
        from gpu_fleet.hooks.kubernetes.endpoints import aws_lane_of, connection_was_there
        from gpu_fleet.hooks.lanes import shared

        work = partial(observe_aws, self._access, self._query)
        try:
            with connection_was_there():
                return await shared(aws_lane_of(self._access), self, work, within=AWS_PATIENCE_S)
        except TimeoutError as error:
            query = self._query
            raise ApiUnavailable(
                f"AWS {query.service} {query.operation}: no answer within {AWS_PATIENCE_S:.0f} s; check the region "
                "and the network"
            ) from error


async def refresh_all(observers: Iterable[Observer]) -> None:
    """Make the objects of all observers current before a judgement, :data:`EXPLANATIONS_AT_ONCE` at a time."""
    places = asyncio.Semaphore(EXPLANATIONS_AT_ONCE)

    async def refresh(observer: Observer) -> None:
        async with places:
            await observer.refresh()

    await asyncio.gather(*(refresh(observer) for observer in observers))


def _identity(content: dict[str, Any]) -> tuple[str, str]:
    metadata = content.get("metadata") or {}
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")
