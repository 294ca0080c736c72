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


_GO = {"string": "string", "integer": "int32", "number": "float64", "boolean": "bool"}


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _fits(node: Node, value: Any) -> bool:
    match node.kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "quantity" | "intstr":
            return isinstance(value, (str, int, float)) and not isinstance(value, bool)
        case "struct" | "map":
            return isinstance(value, dict)
        case "list":
            return isinstance(value, list)
        case _:
            return True


def mismatch(node: Node, value: Any, path: str = "", owner: str = "") -> tuple[Node, Any, str, str] | None:
    """The first value of a wrong JSON type: (its type, it, its path, the struct it is in); ``None`` if all fit."""
    if value is None:
        return None
    if not _fits(node, value):
        return node, value, path, owner
    if isinstance(value, dict) and node.kind in ("struct", "map"):
        inside = node.name if node.kind == "struct" and node.name else owner
        for key, member in value.items():
            child = node.field(key)
            if child is not None and child.kind != "any":
                found = mismatch(child, member, f"{path}.{key}" if path else key, inside)
                if found is not None:
                    return found
    elif isinstance(value, list) and node.kind == "list":
        for item in value:
            found = mismatch(node.items, item, path, owner)
            if found is not None:
                return found
    return None


def decoding_error(node: Node, value: Any) -> str | None:
    """The text of Go's JSON decoder for a value of a wrong type."""
    found = mismatch(node, value)
    if found is None:
        return None
    wanted, got, path, owner = found
    go_type = _GO.get(wanted.kind, wanted.name or wanted.kind)
    if wanted.kind == "list":
        go_type = f"[]{_GO.get(wanted.items.kind, 'v1.' + wanted.items.name)}"
    elif wanted.kind == "map":
        go_type = f"map[string]{_GO.get(wanted.items.kind, wanted.items.name)}"
    elif wanted.kind == "struct":
        go_type = f"v1.{wanted.name}"
    elif wanted.format == "int64":
        go_type = "int64"
    return f"json: cannot unmarshal {_json_type(got)} into Go struct field {owner}.{path} of type {go_type}"


def apply_error(node: Node, value: Any) -> str | None:
    """The same as structured-merge-diff words it for server-side apply."""
    found = mismatch(node, value)
    if found is None:
        return None
    wanted, got, path, _ = found
    expected = {
        "string": "string",
        "integer": "numeric (int or float)",
        "number": "numeric (int or float)",
        "boolean": "boolean",
        "list": "list",
    }.get(wanted.kind, "map")
    shown = {"bool": "boolean", "array": "list", "object": "map"}.get(_json_type(got), _json_type(got))
    if shown == "number":
        shown = "int" if isinstance(got, int) else "float"
    return f".{path}: expected {expected}, got {shown}"


def missing_keys(node: Node, value: Any, path: str = "") -> Iterator[str]:
    """Items of associative lists without one of their keys, as structured-merge-diff words it."""
    if isinstance(value, dict) and node.kind in ("struct", "map") and not node.atomic:
        for key, member in value.items():
            child = node.field(key)
            if child is not None and isinstance(member, (dict, list)):
                yield from missing_keys(child, member, f"{path}.{key}")
    elif isinstance(value, list) and node.kind == "list" and not node.atomic:
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                continue
            absent = [key for key in node.keys if item.get(key) is None and key not in KEY_DEFAULTS]
            if absent:
                yield (
                    f"{path}: element {index}: associative list with keys has an element that omits key field "
                    f'"{absent[0]}" (and doesn\'t have default value)'
                )
            yield from missing_keys(node.items, item, f"{path}[{index}]")
