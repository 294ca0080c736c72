"""The namespace controller: empties a namespace that is being deleted, then lets it go.

Source: kubernetes/kubernetes ``pkg/controller/namespace/deletion/namespaced_resources_deleter.go``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from sandbox.controllers.base import Controller
from sandbox.controllers.objects import Object, condition, is_deleting, meta, with_condition
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError, Resource

#: Real seconds between two checks while only objects of unwatched kinds (events) are left.
LOOK_AGAIN = 1.0


class NamespaceController(Controller):
    """Keys are namespace names."""

    name = "namespace-controller"

    def wire(self) -> None:
        self.namespaces = self.watch("Namespace", self._namespace_changed)
        self._removers.append(self.context.all_kinds.add_handler(self._object_changed))

    def _namespace_changed(self, change: Change, new: Object, _old: Object | None) -> None:
        if change != "DELETED" and is_deleting(new):
            self.queue.add(meta(new)["name"])

    def _object_changed(self, _resource: Resource, _change: Change, new: Object, _old: Object | None) -> None:
        namespace = meta(new).get("namespace")
        found = self.context.informers("Namespace").get(namespace) if namespace else None
        if found is not None and is_deleting(found):
            self.queue.add(namespace)

    async def reconcile(self, key: str) -> None:
        await self.context.all_kinds.ready.wait()
        namespace = await self.kube.find("Namespace", key)
        if namespace is None or not is_deleting(namespace):
            return
        if not (namespace["spec"].get("finalizers") or []):
            return  # only finalizers in its metadata keep it now; other controllers remove them
        if (namespace.get("status") or {}).get("phase") != "Terminating":
            namespace = await self.kube.patch_status("Namespace", key, {"phase": "Terminating"})
        remaining, finalizers = await self._empty(key)
        if remaining:
            await self._explain(namespace, remaining, finalizers)
            self.queue.add_after(key, LOOK_AGAIN)
            return
        rest = [each for each in namespace["spec"].get("finalizers") or [] if each != "kubernetes"]
        body = {**namespace, "spec": {**namespace["spec"], "finalizers": rest}}
        try:
            await self.kube.update(body, subresource="finalize")
        except ApiError as error:
            if not error.not_found:
                raise

    async def _empty(self, namespace: str) -> tuple[Counter[str], Counter[str]]:
        """Delete the content; return how many objects of each resource, and of each finalizer, are left."""
        remaining: Counter[str] = Counter()
        finalizers: Counter[str] = Counter()

        async def empty(resource: Resource) -> None:
            try:
                objects = await self.kube.list(resource, namespace)
                fresh = [obj for obj in objects if not is_deleting(obj)]
                if fresh:
                    await asyncio.gather(
                        *(
                            self.kube.delete(resource, meta(obj)["name"], namespace, propagation="Background")
                            for obj in fresh
                        )
                    )
                    objects = await self.kube.list(resource, namespace)
            except ApiError as error:
                if error.code not in (404, 405):
                    raise
                return
            if objects:
                label = f"{resource.plural}.{resource.group}" if resource.group else f"{resource.plural}."
                remaining[label] = len(objects)
                finalizers.update(each for obj in objects for each in meta(obj).get("finalizers") or [])

        # Pods last but one and events last would be tidier; the real controller has no order either.
        for resource in self.context.all_kinds.namespaced():
            await empty(resource)
        return remaining, finalizers

    async def _explain(self, namespace: Object, remaining: Counter[str], finalizers: Counter[str]) -> None:
        left = ", ".join(f"{name} has {count} resource instances" for name, count in sorted(remaining.items()))
        held = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(finalizers.items()))
        content = f"Some resources are remaining: {left}"
        holding = f"Some content in the namespace has finalizers remaining: {held}"
        texts: dict[str, tuple[str, str, str]] = {
            "NamespaceDeletionDiscoveryFailure": (
                "False",
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
            "NamespaceDeletionContentFailure": (
                "False",
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            "NamespaceContentRemaining": ("True", "SomeResourcesRemain", content),
            "NamespaceFinalizersRemaining": ("True", "SomeFinalizersRemain", holding)
            if finalizers
            else ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        }
        conditions: list[Any] = (namespace.get("status") or {}).get("conditions") or []
        for kind, (status, reason, message) in texts.items():
            present = condition({"status": {"conditions": conditions}}, kind) or {}
            if (present.get("status"), present.get("message")) != (status, message):
                new = {"type": kind, "status": status, "reason": reason, "message": message}
                conditions = with_condition(conditions, new)
        await self.write_status(namespace, (namespace.get("status") or {}) | {"conditions": conditions})
