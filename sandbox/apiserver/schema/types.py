"""The types of objects: what fields there are and how lists merge.

One node type serves strict validation, strategic merge patch and server-side apply, for built-in kinds (definitions of
the PyPI package ``kubernetes-validate``) and custom ones (``openAPIV3Schema``). Nodes are made when first walked into.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources as package_data
from typing import Any, Literal

from sandbox.apiserver import quantities
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.resources import Resource

Kind = Literal["struct", "map", "list", "string", "integer", "number", "boolean", "quantity", "intstr", "any"]
_REF = "#/$defs/"
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
# Keys of associative lists that the real schema gives a default (core/v1 types.go, +default="TCP").
KEY_DEFAULTS = {"protocol": "TCP"}


@functools.cache
def definitions(version: str) -> dict[str, Obj]:
    """OpenAPI definitions of Kubernetes ``version`` ("1.35"), without descriptions (they would cost 30 MB)."""
    path = package_data.files("kubernetes_validate") / f"kubernetes-json-schema/v{version}.0-local/_definitions.json"
    if not path.is_file():
        raise ValueError(f"kubernetes-validate carries no definitions of Kubernetes {version}; choose 1.30 to 1.37")

    def slim(pairs: list[tuple[str, Any]]) -> Obj:
        return {key: value for key, value in pairs if not (key == "description" and isinstance(value, str))}

    found: dict[str, Obj] = json.loads(path.read_text(), object_pairs_hook=slim)["$defs"]
    return found


class Node:
    """
    One type.

    :ivar kind: what values look like.
    :ivar name: short name of the Go struct, for decoding errors.
    :ivar list_type: atomic | set | map (lists); maps and structs: atomic or granular.
    :ivar keys: of an associative list's items.
    :ivar merge_key: of strategic merge patch; with :attr:`strategies`.
    """

    __slots__ = (
        "_definitions",
        "_fields",
        "_items",
        "_raw",
        "format",
        "keys",
        "kind",
        "list_type",
        "merge_key",
        "name",
        "preserve",
        "required",
        "strategies",
    )

    def __init__(self, raw: Obj, defs: dict[str, Obj], name: str = "") -> None:
        self._definitions = defs
        site = raw
        while "$ref" in raw:
            target = raw["$ref"].removeprefix(_REF)
            name = target.rsplit(".", 1)[-1]
            raw = defs[target]
        self._raw = raw
        self.name = name
        self.format = raw.get("format", "")
        self.required: list[str] = raw.get("required", [])
        self.list_type: str = site.get("x-kubernetes-list-type") or raw.get("x-kubernetes-list-type") or "atomic"
        self.keys: list[str] = site.get("x-kubernetes-list-map-keys") or raw.get("x-kubernetes-list-map-keys") or []
        self.merge_key: str = site.get("x-kubernetes-patch-merge-key", "")
        self.strategies = frozenset(filter(None, site.get("x-kubernetes-patch-strategy", "").split(",")))
        self.preserve = bool(raw.get("x-kubernetes-preserve-unknown-fields"))
        self._fields: dict[str, Node] = {}
        self._items: Node | None = None
        self.kind = self._classify(raw)
        if self.kind in ("struct", "map", "any"):
            atomic = "atomic" in (site.get("x-kubernetes-map-type"), raw.get("x-kubernetes-map-type"))
            self.list_type = "atomic" if atomic else "granular"

    def _classify(self, raw: Obj) -> Kind:
        if raw.get("x-kubernetes-int-or-string"):
            return "intstr"
        if "oneOf" in raw and "type" not in raw and "properties" not in raw:
            return "quantity" if self.name == "Quantity" else "intstr"
        declared = raw.get("type")
        type_name = declared[0] if isinstance(declared, list) else declared
        if raw.get("properties"):
            return "struct"
        if isinstance(raw.get("additionalProperties"), dict):
            return "map"
        if type_name == "array":
            return "list" if "items" in raw else "any"
        if type_name in ("string", "integer", "number", "boolean"):
            return type_name  # type: ignore[no-any-return]
        if type_name == "object" and not self._definitions and not self.preserve:
            return "struct"  # a custom resource's object without properties: everything in it is unknown
        return "any"

    def field(self, key: str) -> Node | None:
        """The type of a member; ``None`` if it is not declared."""
        if self.kind == "map":
            return self.items
        if self.kind == "any":
            return ANY
        known = self._fields.get(key)
        if known is None:
            raw = self._raw.get("properties", {}).get(key)
            if raw is None:
                return ANY if self.preserve else None
            known = self._fields[key] = Node(raw, self._definitions, key)
        return known

    def graft(self, key: str, node: Node) -> None:
        """Give a member another type: a custom resource's ``metadata``."""
        self._fields[key] = node

    @property
    def items(self) -> Node:
        if self._items is None:
            raw = self._raw.get("items") if self.kind == "list" else self._raw.get("additionalProperties")
            self._items = Node(raw, self._definitions) if isinstance(raw, dict) else ANY
        return self._items

    def key_default(self, key: str) -> Any:
        """
        What stands for a key that an item of this list does not have; ``None`` if nothing does.

        Go's required strings and numbers have their zero value as the OpenAPI default, so that an item without its name
        is typed, and refused by validation (kube-openapi pkg/generators/openapi.go; a CRD declares its own defaults).
        """
        if not self._definitions:
            properties = self.items._raw.get("properties", {})
            return (properties.get(key) or {}).get("default")
        if key in KEY_DEFAULTS:
            return KEY_DEFAULTS[key]
        child = self.items.field(key) if key in self.items.required else None
        return None if child is None else {"string": "", "integer": 0}.get(child.kind)

    @property
    def atomic(self) -> bool:
        """Whether server-side apply treats a value as one leaf."""
        if self.kind in ("struct", "map", "any"):
            return self.list_type == "atomic"
        if self.kind == "list":
            return self.list_type == "atomic" or (self.list_type == "map" and not self.keys)
        return True


ANY = Node({}, {})


class Types:
    """Nodes of all resources of one Kubernetes version."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._nodes: dict[tuple[str, str, str], tuple[Resource, Node]] = {}
        self._named: dict[str, Node] = {}

    def named(self, definition: str) -> Node:
        node = self._named.get(definition)
        if node is None:
            defs = definitions(self.version)
            node = self._named[definition] = Node({"$ref": _REF + definition}, defs)
        return node

    def of(self, resource: Resource) -> Node:
        key = (resource.group, resource.version, resource.plural)
        found = self._nodes.get(key)
        if found is None or found[0] is not resource:
            node = self._custom(resource) if resource.custom else self.named(resource.definition)
            found = self._nodes[key] = (resource, node)
        return found[1]

    def _custom(self, resource: Resource) -> Node:
        schema = dict(resource.schema or {})
        schema["properties"] = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **schema.get("properties", {}),
        }
        node = Node(schema, {}, resource.kind)
        node.graft("metadata", self.named(OBJECT_META))
        return node


def unknown_fields(node: Node, value: Any, path: str = "") -> Iterator[str]:
    """Paths of members that the type does not declare, written as strict decoding writes them."""
    if isinstance(value, dict) and node.kind in ("struct", "map"):
        for key, member in value.items():
            child = node.field(key)
            where = f"{path}.{key}" if path else key
            if child is None:
                yield where
            elif isinstance(member, (dict, list)):
                yield from unknown_fields(child, member, where)
    elif isinstance(value, list) and node.kind == "list":
        for index, item in enumerate(value):
            yield from unknown_fields(node.items, item, f"{path}[{index}]")


def prune(node: Node, value: Any) -> Any:
    """The value without undeclared members and nulls, quantities in canonical form. The argument is not changed."""
    if isinstance(value, dict):
        if node.kind == "any":
            return value
        kept: Obj = {}
        for key, member in value.items():
            child = node.field(key) if node.kind in ("struct", "map") else ANY
            if child is not None and member is not None:
                kept[key] = prune(child, member)
        return kept
    if isinstance(value, list):
        items = node.items if node.kind == "list" else ANY
        return [prune(items, item) for item in value]
    if node.kind == "quantity" and not isinstance(value, bool):
        try:
            return quantities.canonical(value)
        except ValueError:
            return value
    return value
