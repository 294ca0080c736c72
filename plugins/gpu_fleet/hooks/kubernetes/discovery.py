"""REST mapping: which path serves a kind, by our own table or the API server's discovery."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpu_fleet.core.errors import NotFound
from gpu_fleet.core.kubernetes.kinds import Kind, kind_named
from gpu_fleet.hooks.kubernetes.errors import ApiNotFound

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.client import KubeClient


class Discovery:
    """The kinds that one API server has, as :class:`KubeClient` asks for them."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._found: dict[str, list[Kind]] = {}

    def kind(self, api_version: str, kind: str) -> Kind:
        """See :meth:`KubeClient.kind`.

        A kind that is not in the cache is looked for again: discovery names what a CustomResourceDefinition defines a
        moment after that is established (kubernetes/apiextensions-apiserver
        pkg/apiserver/customresource_discovery_controller.go, v0.36.2).
        """
        known = kind_named(api_version, kind)
        if known is not None:
            return known
        cached = self._found.get(api_version) or []
        found = _of_kind(cached, kind) or _of_kind(self.kinds(api_version), kind)
        if found is not None:
            return found
        raise NotFound(
            f"{self._client.access} has no kind {kind} in {api_version}; install the CustomResourceDefinition first",
            reason="NoKindMatch",
        )

    def kinds(self, api_version: str) -> list[Kind]:
        """See :meth:`KubeClient.kinds`."""
        group, _, version = api_version.rpartition("/")
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        try:
            answer = self._client.raw("GET", root, what=f"discover {api_version}")
        except ApiNotFound:
            return []
        kinds = [
            Kind(group, version, str(item["kind"]), str(item["name"]), bool(item["namespaced"]))
            for item in answer.get("resources", [])
            if "/" not in item["name"]
        ]
        self._found[api_version] = kinds
        return kinds

    def versions(self, group: str) -> list[str]:
        """See :meth:`KubeClient.versions`."""
        if not group:
            return ["v1"]
        try:
            answer = self._client.raw("GET", f"/apis/{group}", what=f"discover API group {group}")
        except ApiNotFound:
            return []
        found = [str(item.get("groupVersion")) for item in answer.get("versions") or []]
        preferred = str((answer.get("preferredVersion") or {}).get("groupVersion") or "")
        return sorted(found, key=lambda version: version != preferred)


def _of_kind(kinds: Iterable[Kind], kind: str) -> Kind | None:
    return next((each for each in kinds if each.kind == kind), None)
