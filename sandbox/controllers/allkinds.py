"""All objects of all kinds, found by discovery: what the garbage collector and the namespace controller work on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp

from sandbox.kube.client import Kube
from sandbox.kube.informers import Change, Informer, SharedInformers
from sandbox.kube.resources import ApiError, Resource

log = logging.getLogger("sandbox.controllers")

Object = dict[str, Any]
Handler = Callable[[Resource, Change, Object, "Object | None"], None]

#: Kinds that change all the time and whose owners need not be followed.
NOT_FOLLOWED = {("", "events"), ("events.k8s.io", "events")}
#: Real seconds after a CRD changed until its kind is looked for again.
SETTLE = 0.05


class AllKinds:
    """Informers for every kind that can be listed, watched and deleted; new CRDs are followed as they are installed.

    :ivar resources: what discovery found last, by ``(group, kind)``: one version of each kind.
    """

    def __init__(self, kube: Kube, informers: SharedInformers) -> None:
        self.resources: dict[tuple[str, str], Resource] = {}
        self._kube = kube
        self._informers = informers
        self._followed: dict[Resource, Informer] = {}
        self._handlers: list[Handler] = []
        self._wake = asyncio.Event()
        self.ready = asyncio.Event()

    def add_handler(self, handler: Handler) -> Callable[[], None]:
        self._handlers.append(handler)
        for resource, informer in self._followed.items():
            for obj in informer.items():
                handler(resource, "ADDED", obj, None)
        return lambda: self._handlers.remove(handler)

    def namespaced(self) -> list[Resource]:
        return [resource for resource in self.resources.values() if resource.namespaced]

    async def run(self) -> None:
        """Follow discovery until cancelled."""
        definitions = self._informers("CustomResourceDefinition")
        remove = definitions.add_handler(self._definition_changed)
        try:
            while True:
                self._wake.clear()
                try:
                    await self._discover()
                    self.ready.set()
                except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                    log.debug("discovery failed: %r", error)
                    await asyncio.sleep(0.5)
                    continue
                await self._wake.wait()
                await asyncio.sleep(SETTLE)
        finally:
            remove()

    def _definition_changed(self, change: Change, new: Object, old: Object | None) -> None:
        if change != "MODIFIED" or old is None or any(new.get(part) != old.get(part) for part in ("spec", "status")):
            self._wake.set()

    async def refresh(self) -> None:
        """Ask discovery now (a kind may just have been added).

        :raises ApiError: if the server does not answer properly.
        """
        await self._discover()

    async def _discover(self) -> None:
        paths = [("", "v1", "/api/v1")]
        for group in (await self._kube.raw("GET", "/apis")).get("groups") or []:
            versions = [each["version"] for each in group["versions"]]
            preferred = (group.get("preferredVersion") or group["versions"][0])["version"]
            for version in [preferred, *(each for each in versions if each != preferred)]:
                paths.append((group["name"], version, f"/apis/{group['name']}/{version}"))
        found: dict[tuple[str, str], Resource] = {}
        for group_name, version, path in paths:
            try:
                listing = await self._kube.raw("GET", path)
            except ApiError as error:
                if error.not_found:  # the group went away between the two requests
                    continue
                raise
            for entry in listing.get("resources") or []:
                if "/" in entry["name"] or not {"list", "watch", "delete"} <= set(entry["verbs"]):
                    continue
                resource = Resource(group_name, version, entry["name"], entry["kind"], entry["namespaced"])
                found.setdefault((group_name, resource.kind), resource)
        self.resources = found
        for resource in found.values():
            if resource not in self._followed and (resource.group, resource.plural) not in NOT_FOLLOWED:
                self._follow(resource)
        for resource in set(self._followed) - set(found.values()):
            await self._informers.drop(self._followed.pop(resource))

    def _follow(self, resource: Resource) -> None:
        informer = self._informers(resource)
        self._followed[resource] = informer

        def forward(change: Change, new: Object, old: Object | None) -> None:
            for handler in tuple(self._handlers):
                handler(resource, change, new, old)

        informer.add_handler(forward)
