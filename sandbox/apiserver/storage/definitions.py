"""The lifecycle of a CustomResourceDefinition after its creation: its names are accepted, it is served, it is deleted.

The controllers of apiextensions-apiserver v1.36: pkg/controller/status/naming_controller.go, pkg/controller/establish,
pkg/controller/finalizer/crd_finalizer.go, and what pkg/apiserver/customresource_handler.go does about them: 404 until
the names are accepted, a wait of two seconds for creations just after that, and 'storage is (re)initializing' (429) for
lists and watches until the cache of a kind is filled, which the first request for it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sandbox.apiserver.errors import ApiError, forbidden
from sandbox.apiserver.jsontools import Obj, clone
from sandbox.apiserver.resources import Registry, Resource
from sandbox.apiserver.schema import crds
from sandbox.apiserver.store import Key, Store
from sandbox.latency import Latencies
from sandbox.settings import Clock

#: Seconds that a creation waits if its definition was established less than as many ago (customresource_handler.go).
_JUST_CREATED = 2.0
_INITIALIZING = "storage is (re)initializing"

Delete = Callable[[Resource, str, str, Obj], Any]


class Definitions:
    """
    The definitions of one server.

    :param delete: deletes one object: (resource, namespace, name, DeleteOptions).
    """

    def __init__(self, store: Store, registry: Registry, clock: Clock, latencies: Latencies, delete: Delete) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._latencies = latencies
        self._delete = delete
        self._established: dict[Key, float] = {}
        self._filled: dict[Key, float] = {}
        self._running: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        for task in self._running:
            task.cancel()

    def _later(self, step: str, then: Callable[[str, str], None], definition: Obj) -> None:
        metadata = definition["metadata"]

        async def wait() -> None:
            await self._clock.sleep(self._latencies.sample(step), step)
            then(metadata["name"], metadata["uid"])

        task = asyncio.create_task(wait())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _find(self, name: str, uid: str = "") -> Obj | None:
        record = self._store.get(crds.KEY, "", name)
        if record is None or (uid and record.obj["metadata"]["uid"] != uid):
            return None
        return record.obj

    # ---- what was written

    def created(self, definition: Obj) -> None:
        self._later("crd_establish", self._accept, definition)

    def updated(self, definition: Obj, before: Obj) -> None:
        """A definition whose spec changed is served anew, with an empty cache, and its watches end."""
        if definition["spec"] == before["spec"]:
            return
        if not crds.is_true(definition, "Established"):
            self._later("crd_establish", self._accept, definition)
            return
        crds.serve(self._registry, definition)
        key = crds.storage(definition)
        self._filled.pop(key, None)
        self._store.end_watches(key)

    def deleted(self, definition: Obj) -> None:
        """It is marked for deletion."""
        self._later("crd_finalize", self._finalize, definition)

    def gone(self, definition: Obj) -> None:
        """It is removed, and its names are free for others of its group."""
        key = crds.storage(definition)
        self._registry.drop(*key)
        self._store.drop_table(key)
        self._filled.pop(key, None)
        self._established.pop(key, None)
        for record in self._store.list(crds.KEY):
            waiting = not crds.is_true(record.obj, "NamesAccepted")
            if waiting and record.obj["spec"]["group"] == definition["spec"]["group"]:
                self._later("crd_establish", self._accept, record.obj)

    # ---- what the controllers do

    def _accept(self, name: str, uid: str) -> None:
        definition = self._find(name, uid)
        if definition is None or crds.is_true(definition, "Established"):
            return
        others = [record.obj for record in self._store.list(crds.KEY) if record.name != name]
        new = clone(definition)
        if not crds.accept_names(new, others):
            self._store.put(crds.KEY, new)
            return
        self._store.put(crds.KEY, new)
        established = clone(new)
        crds.establish(established)
        stored = self._store.put(crds.KEY, established)
        crds.serve(self._registry, stored.obj)
        self._established[crds.storage(stored.obj)] = asyncio.get_running_loop().time()

    def _finalize(self, name: str, uid: str) -> None:
        definition = self._find(name, uid)
        if definition is None:
            return
        new = clone(definition)
        crds.terminating(new, "InstanceDeletionInProgress", "CustomResource deletion is in progress")
        self._store.put(crds.KEY, new)
        for resource in crds.resources(new)[:1]:
            for record in self._store.list(resource.storage):
                self._delete(resource, record.namespace, record.name, {})
        self.finish(name)

    def finish(self, name: str) -> None:
        """Delete a definition that is being finalized once its last object is deleted."""
        definition = self._find(name)
        if definition is None or not crds.being_finalized(definition) or self._store.list(crds.storage(definition)):
            return
        new = clone(definition)
        kept = [item for item in new["metadata"].get("finalizers") or [] if item != crds.FINALIZER]
        if kept:
            new["metadata"]["finalizers"] = kept
            self._store.put(crds.KEY, new)
            return
        new["metadata"].pop("finalizers", None)
        self._store.remove(crds.KEY, "", name, new)
        self.gone(new)

    # ---- what requests meet

    async def admit(self, resource: Resource, verb: str, *, delegated: bool) -> None:
        """
        Let a request for a custom resource pass, as soon as it may.

        :param delegated: a list that bypasses the cache: with a limit, and nothing selected
            (apiserver pkg/storage/cacher/delegator.go ``shouldDelegateListOnNotReadyCache``).
        :raises ApiError: 429 while the kind's cache is being filled.
        """
        loop = asyncio.get_running_loop()
        key = resource.storage
        if key not in self._filled:
            self._filled[key] = loop.time() + self._clock.real(self._latencies.sample("crd_cache"))
        if verb in ("list", "watch") and not delegated and loop.time() < self._filled[key]:
            details = {"retryAfterSeconds": 1}
            raise ApiError(429, "TooManyRequests", _INITIALIZING, details=details, headers={"Retry-After": "1"})
        if verb == "create" and loop.time() - self._established.get(key, 0.0) < self._clock.real(_JUST_CREATED):
            await self._clock.sleep(_JUST_CREATED, "crd_just_created")

    def refuse_creation(self, resource: Resource, name: str) -> None:
        """
        :raises ApiError: 403 for a new object of a kind that is going.
        """
        definition = self._find(f"{resource.plural}.{resource.group}") if resource.custom else None
        if definition is not None and crds.is_true(definition, "Terminating"):
            raise forbidden(resource, name, "create not allowed while custom resource definition is terminating")
