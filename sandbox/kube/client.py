"""A small asynchronous JSON client for the Kubernetes API, used by the sandbox's controllers, nodes and Karpenter.

It works against any real API server, not only the sandbox's: parts of the sandbox also run beside an envtest, kind or
k3s control plane. Objects are plain dicts. Errors are :class:`ApiError`. Connection errors pass through as aiohttp's.

    kube = Kube.from_kubeconfig(path, user_agent="sandbox-nodes")
    await kube.patch_status("Node", "ip-10-0-0-1", {"conditions": [...]})
    await kube.close()
"""

from __future__ import annotations

import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec

from sandbox.kube.events import event_of
from sandbox.kube.kubeconfig import read_kubeconfig
from sandbox.kube.resources import ApiError, Resource, ResourceRegistry
from sandbox.kube.times import now
from sandbox.kube.transport import Transport, error_of

Object = dict[str, Any]
PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
#: Seconds after which the server is asked to end a watch, so that a dead connection is noticed (client-go: 5–10 min).
WATCH_SECONDS = 300


class Kube(Transport):
    """The verbs of the API, over one connection pool and one identity."""

    def __init__(
        self, server: str, *, ssl_context: ssl.SSLContext | None = None, token: str | None = None, user_agent: str
    ) -> None:
        super().__init__(server, ssl_context=ssl_context, token=token, user_agent=user_agent)
        self.resources = ResourceRegistry()
        self._events: dict[tuple[str, ...], tuple[str, int]] = {}

    @classmethod
    def from_kubeconfig(cls, path: str | Path, *, user_agent: str = "sandbox", context: str | None = None) -> Kube:
        """Read server, CA and identity (client certificate or token) from a kubeconfig file.

        :raises ValueError: if the file lacks the context, or its user needs an exec plugin.
        """
        access = read_kubeconfig(Path(path), context)
        kube = cls(access.server, ssl_context=access.ssl_context, token=access.token, user_agent=user_agent)
        kube.certificate_authority = access.certificate_authority
        return kube

    def clone(self, user_agent: str) -> Kube:
        """The same server and certificate under another user agent, which identifies a part in tests and faults."""
        token = self._headers.get("Authorization", "").removeprefix("Bearer ") or None
        other = Kube(self.server, ssl_context=self._ssl, token=token, user_agent=user_agent)
        other.certificate_authority = self.certificate_authority
        return other

    async def _object(self, method: str, path: str, **request: Any) -> Object:
        answer: Object = await self.raw(method, path, **request)
        return answer

    async def get(self, kind: str | Resource, name: str, namespace: str | None = None) -> Object:
        return await self._object("GET", self.resources(kind).path(namespace, name))

    async def find(self, kind: str | Resource, name: str, namespace: str | None = None) -> Object | None:
        """Like :meth:`get`, but None when the object is absent."""
        try:
            return await self.get(kind, name, namespace)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def list_page(
        self,
        kind: str | Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Object:
        """The whole List object; its items carry apiVersion and kind, which servers leave out of lists."""
        resource = self.resources(kind)
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {name: value for name, value in query.items() if value}
        page = await self._object("GET", resource.path(namespace), query=query)
        page["items"] = page.get("items") or []
        for item in page["items"]:
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
        return page

    async def list(
        self,
        kind: str | Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> list[Object]:
        """The items of a kind, in all namespaces unless one is given."""
        page = await self.list_page(kind, namespace, label_selector=label_selector, field_selector=field_selector)
        items: list[Object] = page["items"]
        return items

    async def watch(
        self,
        kind: str | Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        timeout_seconds: int = WATCH_SECONDS,
    ) -> AsyncIterator[tuple[str, Object]]:
        """``(type, object)`` for each change after ``resource_version``, bookmarks included, until the server ends it.

        :raises ApiError: code 410 when the version is too old, also in mid-stream.
        """
        resource = self.resources(kind)
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": resource_version}
        query |= {"timeoutSeconds": str(timeout_seconds)}
        query |= {"labelSelector": label_selector} if label_selector else {}
        query |= {"fieldSelector": field_selector} if field_selector else {}
        # Closed here: a watch that is left early must not keep its connection until the garbage collector comes.
        async with aclosing(self.lines(resource.path(namespace), query, silence=timeout_seconds + 30)) as lines:
            async for line in lines:
                event = msgspec.json.decode(line)
                if event["type"] == "ERROR":
                    raise error_of(event["object"].get("code", 500), msgspec.json.encode(event["object"]))
                yield event["type"], event["object"]

    async def create(self, obj: Object, *, field_manager: str | None = None) -> Object:
        """POST; the namespace is the manifest's own."""
        meta = obj["metadata"]
        query = {"fieldManager": field_manager} if field_manager else None
        return await self._object("POST", self.resources.of(obj).path(meta.get("namespace")), query=query, body=obj)

    async def update(self, obj: Object, *, subresource: str | None = None) -> Object:
        """PUT with the manifest's resourceVersion; Conflict if it is stale."""
        meta = obj["metadata"]
        path = self.resources.of(obj).path(meta.get("namespace"), meta["name"], subresource)
        return await self._object("PUT", path, body=obj)

    async def update_status(self, obj: Object) -> Object:
        return await self.update(obj, subresource="status")

    async def patch(
        self,
        kind: str | Resource,
        name: str,
        body: Any,
        namespace: str | None = None,
        *,
        type: Literal["merge", "strategic", "json"] = "merge",  # noqa: A002 - the API's own word
        subresource: str | None = None,
    ) -> Object:
        """PATCH. ``merge`` replaces lists whole; put ``metadata.resourceVersion`` in the body to detect conflicts."""
        path = self.resources(kind).path(namespace, name, subresource)
        return await self._object("PATCH", path, body=body, content_type=PATCH_TYPES[type])

    async def patch_status(
        self, kind: str | Resource, name: str, status: Object, namespace: str | None = None
    ) -> Object:
        """Merge ``status`` into the object's status: fields set to None go, lists are replaced."""
        return await self.patch(kind, name, {"status": status}, namespace, subresource="status")

    async def apply(self, obj: Object, *, field_manager: str, force: bool = True) -> Object:
        """Server-side apply."""
        meta = obj["metadata"]
        path = self.resources.of(obj).path(meta.get("namespace"), meta["name"])
        query = {"fieldManager": field_manager, "force": str(force).lower()}
        return await self._object("PATCH", path, query=query, body=obj, content_type=PATCH_TYPES["apply"])

    async def delete(
        self,
        kind: str | Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
    ) -> bool:
        """DELETE; False if the object was absent (or, with ``uid``, is another one by now)."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid or resource_version:
            body["preconditions"] = {"uid": uid} if uid else {}
            if resource_version:
                body["preconditions"]["resourceVersion"] = resource_version
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        if propagation:
            body["propagationPolicy"] = propagation
        try:
            await self.raw("DELETE", self.resources(kind).path(namespace, name), body=body)
        except ApiError as error:
            if error.not_found or (uid and not resource_version and error.code == 409):
                return False
            raise
        return True

    async def evict(
        self, namespace: str, name: str, *, grace_seconds: int | None = None, uid: str | None = None
    ) -> Object:
        """POST to ``pods/eviction``.

        :param uid: refuse (409) to evict another pod of the same name.
        :raises ApiError: 429 when a PodDisruptionBudget forbids it.
        """
        body: Object = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
        }
        options: Object = {}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if options:
            body["deleteOptions"] = options
        return await self._object("POST", self.resources("Pod").path(namespace, name, "eviction"), body=body)

    async def bind(self, namespace: str, name: str, node: str, *, uid: str | None = None) -> None:
        """POST to ``pods/binding``: what the scheduler does with its choice."""
        body: Object = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace} | ({"uid": uid} if uid else {}),
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await self.raw("POST", self.resources("Pod").path(namespace, name, "binding"), body=body)

    async def post_event(
        self,
        involved: Object,
        reason: str,
        message: str,
        *,
        component: str,
        type: Literal["Normal", "Warning"] = "Normal",  # noqa: A002 - the API's own word
    ) -> None:
        """An Event about ``involved``; the same reason and message again raises its count instead.

        Failures are swallowed as client-go's recorder does: an event never decides anything.
        """
        meta = involved["metadata"]
        namespace = meta.get("namespace") or "default"
        key = (meta.get("uid", ""), namespace, meta["name"], reason, message, component)
        try:
            if known := self._events.get(key):
                name, count = known
                body = {"count": count + 1, "lastTimestamp": now()}
                try:
                    await self.patch("Event", name, body, namespace)
                    self._events[key] = (name, count + 1)
                    return
                except ApiError as error:
                    if not error.not_found:
                        raise
            name = f"{meta['name']}.{uuid.uuid4().hex[:16]}"
            await self.create(event_of(involved, name, namespace, reason, message, component, type))
            if len(self._events) > 2000:
                self._events.clear()
            self._events[key] = (name, 1)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError):
            return
