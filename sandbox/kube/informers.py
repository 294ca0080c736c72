"""Informers: a kind's objects kept up to date by list and watch.

An informer lists once, then watches from that resourceVersion. It lists again when the server says 410 (or the
connection breaks in a way that lost events), compares with its cache and reports the differences, so that a handler
never misses a change. Objects in the cache are shared: **do not change them, copy first**.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

import aiohttp

from sandbox.kube.client import Kube
from sandbox.kube.resources import ApiError, Resource

log = logging.getLogger("sandbox.kube.informers")

Object = dict[str, Any]
Key = tuple[str, str]
Change = Literal["ADDED", "MODIFIED", "DELETED"]
#: ``handler(change, new, old)``: on DELETED ``new`` is the last known state; on ADDED ``old`` is None.
Handler = Callable[[Change, Object, Object | None], None]

#: Seconds between attempts to reach a server that does not answer; doubles up to the second value.
RETRY = (0.1, 5.0)
#: Seconds between looks for a kind that the server does not (yet) serve.
ABSENT_KIND_RETRY = 1.0


def key_of(obj: Object) -> Key:
    """``(namespace or "", name)``."""
    meta = obj["metadata"]
    return meta.get("namespace") or "", meta["name"]


class Informer:
    """The cache of one kind (optionally one namespace, label or field selector).

    :ivar synced: set after the first complete list. A kind that the server does not serve counts as an empty list
        (its CRD may be installed later; the informer keeps looking).
    :ivar changed: set at the next change and then replaced: take it *before* looking at the cache, await it after.
    """

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self.changed = asyncio.Event()
        self._kube = kube
        self._scope: dict[str, Any] = {
            "namespace": namespace,
            "label_selector": label_selector,
            "field_selector": field_selector,
        }
        self._objects: dict[Key, Object] = {}
        self._handlers: list[Handler] = []
        self._indexers: dict[str, Callable[[Object], Iterable[str]]] = {}
        self._indexes: dict[str, dict[str, dict[Key, Object]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._version = 0

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        return self._objects.get((namespace or "", name))

    def items(self, namespace: str | None = None) -> list[Object]:
        if namespace is None:
            return list(self._objects.values())
        return [obj for (ns, _), obj in self._objects.items() if ns == namespace]

    def add_index(self, name: str, function: Callable[[Object], Iterable[str]]) -> None:
        """Keep objects findable by the strings that ``function`` returns for them; a second add is ignored."""
        if name in self._indexers:
            return
        self._indexers[name] = function
        index: dict[str, dict[Key, Object]] = {}
        for key, obj in self._objects.items():
            for value in function(obj):
                index.setdefault(value, {})[key] = obj
        self._indexes[name] = index

    def by_index(self, name: str, value: str) -> list[Object]:
        return list(self._indexes[name].get(value, {}).values())

    def add_handler(self, handler: Handler) -> Callable[[], None]:
        """Call ``handler`` for each change from now on, and at once with ADDED for what is in the cache already.

        :return: a function that takes the handler off again.
        """
        self._handlers.append(handler)
        for obj in list(self._objects.values()):
            self._call(handler, "ADDED", obj, None)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._handlers.remove(handler)

        return remove

    async def wait_for_change(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait for the next change; False when ``timeout`` real seconds passed without one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), timeout)
            return True
        return False

    async def wait_until(self, predicate: Callable[[Informer], Any], timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Wait until ``predicate(informer)`` is true and return its value.

        :raises TimeoutError: after ``timeout`` real seconds.
        """
        async with asyncio.timeout(timeout):
            while True:
                changed = self.changed
                if value := predicate(self):
                    return value
                await changed.wait()

    async def caught_up(self, obj: Object, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until the cache is at least as new as ``obj``, a reply to one of our own writes.

        A controller that looks again before its own creations have come back by watch would create them twice
        (client-go's controllers keep 'expectations' for that). Gives up silently after ``timeout`` real seconds.
        """
        version = int(obj["metadata"].get("resourceVersion") or 0)
        with contextlib.suppress(TimeoutError):
            await self.wait_until(lambda informer: informer._version >= version, timeout)

    # --- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"informer-{self.resource.plural}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def clear(self) -> None:
        """Empty the cache; the handlers see DELETED."""
        self._replace([])

    async def _run(self) -> None:
        delay, largest = RETRY
        version: str | None = None
        while True:
            try:
                if version is None:
                    version = await self._relist()
                version = await self._watch(version)
                delay = RETRY[0]
                continue
            except ApiError as error:
                version = None
                if error.expired:
                    continue
                if error.not_found:
                    self._replace([])
                    self.synced.set()
                    await asyncio.sleep(ABSENT_KIND_RETRY)
                    continue
                log.warning("%s: %s", self.resource.plural, error)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                # The server went away in mid-stream: everything up to the last event is in the cache, but which
                # version that was is only certain after a list.
                version = None
                log.debug("%s: connection lost: %r", self.resource.plural, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, largest)

    async def _relist(self) -> str:
        page = await self._kube.list_page(self.resource, **self._scope)
        version = str(page["metadata"].get("resourceVersion", "0"))
        self._version = max(self._version, int(version))
        self._replace(page["items"])
        self.synced.set()
        self._announce()
        return version

    async def _watch(self, version: str) -> str:
        """Follow until the server ends the watch regularly; returns the version to continue from."""
        async for change, obj in self._kube.watch(self.resource, resource_version=version, **self._scope):
            version = obj["metadata"]["resourceVersion"]
            self._version = max(self._version, int(version))
            if change != "BOOKMARK":
                self._take(change, obj)
        return version

    # --- cache -------------------------------------------------------------------------------------------------

    def _replace(self, objects: list[Object]) -> None:
        seen = {key_of(obj) for obj in objects}
        for key in [key for key in self._objects if key not in seen]:
            self._take("DELETED", self._objects[key])
        for obj in objects:
            old = self._objects.get(key_of(obj))
            if old is not None and old["metadata"].get("uid") != obj["metadata"].get("uid"):
                self._take("DELETED", old)
                old = None
            if old is None or old["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
                self._take("ADDED" if old is None else "MODIFIED", obj)

    def _take(self, change: str, obj: Object) -> None:
        key = key_of(obj)
        old = self._objects.get(key)
        if change == "DELETED":
            self._objects.pop(key, None)
            reported: Change = "DELETED"
        else:
            self._objects[key] = obj
            reported = "ADDED" if old is None else "MODIFIED"
        for name, function in self._indexers.items():
            index = self._indexes[name]
            for value in function(old) if old is not None else ():
                if (bucket := index.get(value)) is not None:
                    bucket.pop(key, None)
                    if not bucket:
                        del index[value]
            if change != "DELETED":
                for value in function(obj):
                    index.setdefault(value, {})[key] = obj
        for handler in tuple(self._handlers):
            self._call(handler, reported, obj, old)
        self._announce()

    def _announce(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _call(self, handler: Handler, change: Change, new: Object, old: Object | None) -> None:
        try:
            handler(change, new, old)
        except Exception:  # one part's handler must not stop the cache that the others share
            log.exception("%s: a handler failed", self.resource.plural)


class SharedInformers:
    """One informer per kind and scope inside a part. ``informers("Pod")`` creates and starts it on first use."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._informers: dict[tuple[Any, ...], Informer] = {}

    def __call__(
        self,
        kind: str | Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Informer:
        resource = self._kube.resources(kind)
        key = (resource, namespace, label_selector, field_selector)
        if key not in self._informers:
            informer = Informer(
                self._kube,
                resource,
                namespace=namespace,
                label_selector=label_selector,
                field_selector=field_selector,
            )
            informer.start()
            self._informers[key] = informer
        return self._informers[key]

    async def drop(self, informer: Informer) -> None:
        """Stop an informer whose kind is no longer served; its handlers see DELETED for what was left in the cache."""
        self._informers = {key: each for key, each in self._informers.items() if each is not informer}
        await informer.close()
        informer.clear()

    async def synced(self) -> None:
        """Wait until every informer requested so far has its first list."""
        await asyncio.gather(*(informer.synced.wait() for informer in list(self._informers.values())))

    async def close(self) -> None:
        await asyncio.gather(*(informer.close() for informer in self._informers.values()))
        self._informers.clear()
