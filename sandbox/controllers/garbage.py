"""The garbage collector: deletes what has lost its owners, and finishes foreground and orphaning deletes.

Source: kubernetes/kubernetes ``pkg/controller/garbagecollector/garbagecollector.go``.
"""

from __future__ import annotations

from typing import Any, Literal

from sandbox.controllers.base import Context, Controller
from sandbox.controllers.objects import Object, is_deleting, meta
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError, Resource

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
#: How many uids of owners known to be gone are remembered.
ABSENT_OWNERS = 500


class GarbageCollector(Controller):
    """Keys are uids of objects in the graph."""

    name = "garbage-collector"
    workers = 4

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._objects: dict[str, tuple[Resource, Object]] = {}
        self._dependents: dict[str, set[str]] = {}
        self._absent: dict[str, None] = {}

    def wire(self) -> None:
        self._removers.append(self.context.all_kinds.add_handler(self._object_changed))

    # --- the graph ---------------------------------------------------------------------------------------------

    def _object_changed(self, resource: Resource, change: Change, new: Object, old: Object | None) -> None:
        uid = meta(new)["uid"]
        for owner in _owners(old) if old is not None else ():
            self._dependents.get(owner["uid"], set()).discard(uid)
        if change == "DELETED":
            self._objects.pop(uid, None)
            self._absent[uid] = None
            while len(self._absent) > ABSENT_OWNERS:
                self._absent.pop(next(iter(self._absent)))
            for dependent in self._dependents.get(uid, ()):
                self.queue.add(dependent)
            for owner in _owners(new):  # an owner deleted in the foreground may have waited for this one
                if owner["uid"] in self._objects:
                    self.queue.add(owner["uid"])
            if not self._dependents.get(uid):
                self._dependents.pop(uid, None)
            return
        self._objects[uid] = (resource, new)
        for owner in _owners(new):
            self._dependents.setdefault(owner["uid"], set()).add(uid)
        finalizers = meta(new).get("finalizers") or []
        being_finished = is_deleting(new) and (FOREGROUND in finalizers or ORPHAN in finalizers)
        owners_are_news = old is None or _owners(old) != _owners(new)
        if being_finished or (owners_are_news and any(self._is_doubtful(owner) for owner in _owners(new))):
            self.queue.add(uid)

    def _is_doubtful(self, owner: Object) -> bool:
        known = self._objects.get(owner["uid"])
        return known is None or is_deleting(known[1])

    # --- decisions ---------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> None:
        await self.context.all_kinds.ready.wait()
        await self.context.informers.synced()
        known = self._objects.get(key)
        if known is None:
            return
        resource, obj = known
        finalizers = meta(obj).get("finalizers") or []
        if is_deleting(obj):
            if ORPHAN in finalizers:
                await self._orphan(resource, obj)
            elif FOREGROUND in finalizers:
                await self._finish_foreground(resource, obj)
            return
        await self._judge(resource, obj)

    async def _judge(self, resource: Resource, obj: Object) -> None:
        """Delete an object without a living owner, or remove deleted and waiting owners from its list."""
        owners = _owners(obj)
        if not owners:
            return
        solid: list[Object] = []
        waiting: list[Object] = []
        dangling: list[Object] = []
        for owner in owners:
            state = await self._owner_state(owner, meta(obj).get("namespace"))
            {"solid": solid, "waiting": waiting, "dangling": dangling}[state].append(owner)
        name, namespace, uid = meta(obj)["name"], meta(obj).get("namespace"), meta(obj)["uid"]
        if solid:
            if dangling or waiting:
                await self._write_owners(resource, obj, solid)
            return
        policy: Literal["Background", "Foreground", "Orphan"]
        if waiting and self._dependents.get(uid):
            policy = "Foreground"
        else:
            finalizers = meta(obj).get("finalizers") or []
            policy = "Orphan" if ORPHAN in finalizers else "Foreground" if FOREGROUND in finalizers else "Background"
        await self.kube.delete(resource, name, namespace, uid=uid, propagation=policy)

    async def _owner_state(self, owner: Object, namespace: str | None) -> Literal["solid", "waiting", "dangling"]:
        known = self._objects.get(owner["uid"])
        if known is None:
            if owner["uid"] in self._absent:
                return "dangling"
            # Not in the graph: it may be new, of a kind not followed, or gone. Only the server knows.
            resource = await self._resource_of(owner)
            live = await self.kube.find(resource, owner["name"], namespace if resource.namespaced else None)
            if live is None or meta(live)["uid"] != owner["uid"]:
                self._absent[owner["uid"]] = None
                return "dangling"
        else:
            live = known[1]
        foreground = is_deleting(live) and FOREGROUND in (meta(live).get("finalizers") or [])
        # An owner that waits for its blocking dependents counts as deleted for them, or both would wait forever.
        return "waiting" if foreground else "solid"

    async def _resource_of(self, owner: Object) -> Resource:
        group = owner["apiVersion"].rpartition("/")[0]
        key = (group, owner["kind"])
        if key not in self.context.all_kinds.resources:
            await self.context.all_kinds.refresh()
        try:
            return self.context.all_kinds.resources[key]
        except KeyError:
            raise ApiError(
                404, "NotFound", f"no resource for owner kind {owner['kind']} of {owner['apiVersion']}"
            ) from None

    async def _finish_foreground(self, resource: Resource, obj: Object) -> None:
        blocking = False
        for uid in sorted(self._dependents.get(meta(obj)["uid"], ())):
            known = self._objects.get(uid)
            if known is None:
                continue
            dependent_resource, dependent = known
            if any(
                owner["uid"] == meta(obj)["uid"] and owner.get("blockOwnerDeletion") for owner in _owners(dependent)
            ):
                blocking = True
            if not is_deleting(dependent):
                await self._judge(dependent_resource, dependent)
        if not blocking:
            await self._drop_finalizer(resource, obj, FOREGROUND)

    async def _orphan(self, resource: Resource, obj: Object) -> None:
        for uid in sorted(self._dependents.get(meta(obj)["uid"], ())):
            known = self._objects.get(uid)
            if known is not None:
                rest = [owner for owner in _owners(known[1]) if owner["uid"] != meta(obj)["uid"]]
                await self._write_owners(*known, rest)
        await self._drop_finalizer(resource, obj, ORPHAN)

    async def _write_owners(self, resource: Resource, obj: Object, owners: list[Object]) -> None:
        await self._patch(resource, obj, {"ownerReferences": owners or None})

    async def _drop_finalizer(self, resource: Resource, obj: Object, finalizer: str) -> None:
        rest = [each for each in meta(obj).get("finalizers") or [] if each != finalizer]
        version = meta(obj)["resourceVersion"]  # another client may change the same list
        await self._patch(resource, obj, {"finalizers": rest or None, "resourceVersion": version})

    async def _patch(self, resource: Resource, obj: Object, metadata: dict[str, Any]) -> None:
        body = {"metadata": metadata | {"uid": meta(obj)["uid"]}}
        try:
            await self.kube.patch(resource, meta(obj)["name"], body, meta(obj).get("namespace"))
        except ApiError as error:
            if error.not_found:
                return
            raise


def _owners(obj: Object) -> list[Object]:
    return meta(obj).get("ownerReferences") or []
