"""URL paths, selectors and list items, as both clients write and read them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from gpu_fleet.core.errors import Invalid
from gpu_fleet.core.kubernetes.kinds import Kind

#: Objects per page of a list.
PAGE_SIZE = 500

Json = dict[str, Any]


def object_path(kind: Kind, namespace: str | None, name: str, subresource: str | None = None) -> str:
    """The URL path of one object.

    :raises Invalid: if a namespaced kind comes without a namespace, which would address another resource.
    """
    if kind.namespaced and not namespace:
        raise Invalid(f"{kind.kind} {name!r} is namespaced: set metadata.namespace")
    return kind.path(namespace, quote(name, safe=":"), subresource)


def selectors(name: str | None, label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    """The query parameters that select objects of a list or watch.

    :param name: at most the object of this name.
    """
    found = {}
    if label_selector:
        found["labelSelector"] = label_selector
    fields = ",".join(part for part in (f"metadata.name={name}" if name else "", field_selector or "") if part)
    if fields:
        found["fieldSelector"] = fields
    return found


def typed(item: Json, kind: Kind) -> Json:
    """A list's item with the ``apiVersion`` and ``kind`` that servers leave out there."""
    item.setdefault("apiVersion", kind.api_version)
    item.setdefault("kind", kind.kind)
    return item
