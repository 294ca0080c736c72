"""The synchronous Kubernetes client: plain JSON dictionaries in and out, typed errors, bounded retries."""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from gpu_fleet.core.errors import ApiUnavailable, GpuFleetError, Invalid
from gpu_fleet.core.kubernetes.kinds import EVENT, POD, Kind, ObjectRef
from gpu_fleet.core.kubernetes.names import FIELD_MANAGER
from gpu_fleet.core.kubernetes.objects import event_time
from gpu_fleet.hooks.kubernetes.access import ClusterAccess
from gpu_fleet.hooks.kubernetes.discovery import Discovery
from gpu_fleet.hooks.kubernetes.errors import ApiNotFound, is_expired
from gpu_fleet.hooks.kubernetes.paths import PAGE_SIZE, Json, object_path, selectors, typed
from gpu_fleet.hooks.kubernetes.transport import READ_TIMEOUT_S, Transport

APPLY = "application/apply-patch+yaml"
PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


class KubeClient:
    """One cluster's API. Safe for threads.

    :param sleep: waits between retries; injected by tests.
    :param monotonic: the clock of their time budget; injected by tests.
    """

    def __init__(
        self,
        access: ClusterAccess,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access
        self._transport = Transport(access, sleep=sleep, monotonic=monotonic)
        self._discovery = Discovery(self)

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, ref: ObjectRef) -> Json | None:
        """The object, or ``None`` if it is absent."""
        try:
            return self.raw("GET", object_path(ref.kind, ref.namespace, ref.name), what=f"get {ref}")
        except ApiNotFound:
            return None

    def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        name: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        keep: Callable[[Json], bool] | None = None,
    ) -> builtins.list[Json]:
        """All objects that match, over all namespaces if none is given; a kind the server lacks gives an empty list.

        :param keep: which of them matter; the others are dropped page by page, as they arrive.
        """
        return self._list(kind, namespace, name, label_selector, field_selector, {}, keep)

    def list_metadata(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> builtins.list[Json]:
        """Like :meth:`list`, but only ``metadata`` travels: for Secrets and large objects."""
        headers = {"Accept": METADATA_LIST}
        items = self._list(kind, namespace, None, label_selector, field_selector, headers)
        return [
            {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": item.get("metadata") or {}}
            for item in items
        ]

    def events(self, namespace: str | None, uid: str | None = None, name: str | None = None) -> builtins.list[Json]:
        """Events about an object, newest last."""
        fields = {"involvedObject.uid": uid, "involvedObject.name": name}
        selector = ",".join(f"{key}={value}" for key, value in fields.items() if value)
        found = self.list(EVENT, namespace, field_selector=selector or None)
        return sorted(found, key=event_time)

    def read_log(self, namespace: str, pod: str, container: str | None = None, tail_lines: int = 50) -> str:
        """The last lines of a container's log."""
        query: dict[str, Any] = {"tailLines": tail_lines}
        if container:
            query["container"] = container
        path = object_path(POD, namespace, pod, "log")
        body = self._transport.request("GET", path, query=query, what=f"read the log of Pod {namespace}/{pod}")
        return body.decode("utf-8", "replace")

    # --- writing -----------------------------------------------------------------------------------------------

    def create(self, manifest: Json) -> Json:
        """Create an object (``metadata.name`` or ``generateName``).

        :raises AlreadyExists: if it exists.
        """
        kind, namespace, name = self._address(manifest)
        if kind.namespaced and not namespace:
            raise Invalid(f"{kind.kind} {name!r} is namespaced: set metadata.namespace")
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        what = f"create {ObjectRef(kind, name or manifest['metadata'].get('generateName', ''), namespace)}"
        return self.raw("POST", kind.path(namespace), query=query, body=manifest, what=what)

    def apply(
        self, manifest: Json, *, force: bool = False, dry_run: bool = False, field_manager: str = FIELD_MANAGER
    ) -> Json:
        """Server-side apply; the result is the whole object.

        :param force: take over fields that other managers own.
        :raises FieldConflict: naming the other manager and the fields.
        :raises Invalid: a field the schema does not have, an immutable field, an admission rule.
        """
        kind, namespace, name = self._address(manifest)
        query = {"fieldManager": field_manager, "fieldValidation": "Strict", "force": force}
        if dry_run:
            query["dryRun"] = "All"
        return self.raw(
            "PATCH",
            object_path(kind, namespace, name),
            query=query,
            body=manifest,
            headers={"Content-Type": APPLY},
            what=f"apply {ObjectRef(kind, name, namespace)}",
        )

    def replace(self, manifest: Json) -> Json:
        """PUT; with ``metadata.resourceVersion`` it is a compare-and-swap.

        :raises Conflict: if the object has changed since.
        """
        kind, namespace, name = self._address(manifest)
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        what = f"replace {ObjectRef(kind, name, namespace)}"
        return self.raw("PUT", object_path(kind, namespace, name), query=query, body=manifest, what=what)

    def patch(
        self,
        ref: ObjectRef,
        body: Any,
        *,
        subresource: str | None = None,
        dry_run: bool = False,
        strategy: Literal["merge", "strategic", "json"] = "merge",
        field_manager: str = FIELD_MANAGER,
    ) -> Json:
        """Patch an object; ``strategic`` is refused by servers for custom resources.

        :raises NotFound: if it is absent.
        """
        query: dict[str, Any] = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        return self.raw(
            "PATCH",
            object_path(ref.kind, ref.namespace, ref.name, subresource),
            query=query,
            body=body,
            headers={"Content-Type": PATCH_TYPES[strategy]},
            what=f"patch {ref}",
        )

    def delete(
        self,
        ref: ObjectRef,
        *,
        propagation: str = "Background",
        grace_seconds: int | None = None,
        uid: str | None = None,
        version: str | None = None,
        dry_run: bool = False,
        retry: bool = True,
        read_timeout: float = READ_TIMEOUT_S,
    ) -> bool:
        """Ask for deletion; finalizers may keep the object for a while. ``False`` if it was absent.

        :param uid: delete only this incarnation.
        :param version: delete only this ``resourceVersion``.
        :param retry: whether the client repeats it; a caller with a deadline does so itself.
        :param read_timeout: see :meth:`evict`.
        :raises Conflict: if ``uid`` or ``version`` is not the object's.
        """
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        wanted = {key: value for key, value in (("uid", uid), ("resourceVersion", version)) if value is not None}
        if wanted:
            options["preconditions"] = wanted
        if dry_run:
            options["dryRun"] = ["All"]
        path = object_path(ref.kind, ref.namespace, ref.name)
        query = {"dryRun": "All"} if dry_run else None
        try:
            self.raw(
                "DELETE", path, query=query, body=options, what=f"delete {ref}", retry=retry, read_timeout=read_timeout
            )
        except ApiNotFound:
            return False
        return True

    def evict(
        self,
        namespace: str,
        name: str,
        *,
        uid: str,
        grace_seconds: int | None = None,
        dry_run: bool = False,
        read_timeout: float = READ_TIMEOUT_S,
    ) -> None:
        """Ask for a pod's eviction through the Eviction API.

        :param uid: evict only this incarnation: a StatefulSet's next pod has the same name, on another node.
        :param dry_run: only ask whether it would be granted; no budget is spent.
        :param read_timeout: seconds to wait for the server's answer. After it the eviction may have happened or not; to
            ask again is harmless, because a pod that is terminating spends no budget.
        :raises Conflict: the pod of that name is another one.
        :raises Invalid: with reason ``SeveralDisruptionBudgets``, which the Eviction API does not support.
        :raises Throttled: with reason ``DisruptionBudget``: a disruption budget forbids it now (``retry_after`` is
            ``None``) or is not observed yet. With another reason: the server itself has too much to do.
        :raises NotFound: the pod is gone.
        """
        options: Json = {"preconditions": {"uid": uid}}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if dry_run:
            options["dryRun"] = ["All"]
        body: Json = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": options,
        }
        path = object_path(POD, namespace, name, "eviction")
        self.raw("POST", path, body=body, what=f"evict Pod {namespace}/{name}", retry=False, read_timeout=read_timeout)

    # --- addressing --------------------------------------------------------------------------------------------

    def ref(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> ObjectRef:
        """The reference of an object of any kind.

        :raises NotFound: if the server has no such kind.
        """
        known = self.kind(api_version, kind)
        return ObjectRef(known, name, namespace if known.namespaced else None)

    def kind(self, api_version: str, kind: str) -> Kind:
        """The REST mapping of a kind: our own table, else the server's discovery (cached).

        :raises NotFound: if the server has no such kind.
        """
        return self._discovery.kind(api_version, kind)

    def kinds(self, api_version: str) -> builtins.list[Kind]:
        """The kinds of an API version, as the server has them now; empty for a version that it lacks."""
        return self._discovery.kinds(api_version)

    def versions(self, group: str) -> builtins.list[str]:
        """The ``apiVersion``s of an API group that the server has now, the preferred one first; empty for a group that
        it lacks. The core group, ``""``, has ``v1``.
        """
        return self._discovery.versions(group)

    def _address(self, manifest: Json) -> tuple[Kind, str | None, str]:
        metadata = manifest.get("metadata") or {}
        kind = self.kind(str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))
        return kind, metadata.get("namespace") if kind.namespaced else None, str(metadata.get("name") or "")

    def now(self) -> float:
        """Epoch seconds by the API server's clock; see :meth:`Transport.now`."""
        return self._transport.now()

    @property
    def ahead(self) -> float | None:
        """By how many seconds that clock is ahead of this machine's; ``None`` before the server's first answer."""
        return self._transport.ahead

    def close(self) -> None:
        """Close idle connections; the client stays usable."""
        self._transport.close()

    # --- calls -------------------------------------------------------------------------------------------------

    def raw(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        what: str | None = None,
        retry: bool = True,
        read_timeout: float = READ_TIMEOUT_S,
    ) -> Json:
        """One call, JSON in and out.

        :param what: how messages name the call; the method and path by default.
        :param retry: whether repeating it is harmless. A POST is repeated only if the server cannot have run it.
        :param read_timeout: seconds that one attempt waits for the server's next byte.
        """
        content = self._transport.request(
            method, path, query=query, body=body, headers=headers, what=what, retry=retry, read_timeout=read_timeout
        )
        if not content:
            return {}
        try:
            value = json.loads(content)
        except ValueError as error:
            raise ApiUnavailable(f"{what or f'{method} {path}'}: the answer is not JSON") from error
        return value if isinstance(value, dict) else {"value": value}

    def _list(
        self,
        kind: Kind,
        namespace: str | None,
        name: str | None,
        label_selector: str | None,
        field_selector: str | None,
        headers: Mapping[str, str],
        keep: Callable[[Json], bool] | None = None,
    ) -> builtins.list[Json]:
        query: dict[str, Any] = {"limit": PAGE_SIZE, **selectors(name, label_selector, field_selector)}
        what = f"list {kind.plural}" + (f" in {namespace}" if namespace else "")
        items: builtins.list[Json] = []
        while True:
            try:
                page = self.raw("GET", kind.path(namespace), query=query, headers=headers, what=what)
            except ApiNotFound:
                return []  # the kind's CustomResourceDefinition is not installed
            except GpuFleetError as error:
                if is_expired(error) and "continue" in query:
                    items = []
                    del query["continue"]
                    continue
                raise
            items.extend(typed(item, kind) for item in page.get("items") or [] if keep is None or keep(item))
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            query["continue"] = token
