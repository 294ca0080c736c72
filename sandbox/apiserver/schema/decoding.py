"""Decoding a request's body into an object of a type: wrong types, unreadable values, undeclared and duplicate fields.

Sources (v1.36): apiserver pkg/endpoints/handlers/{create,update,patch,rest}.go and pkg/endpoints/handlers/rest.go
``transformDecodeError``; apimachinery pkg/runtime/converter.go, pkg/apis/meta/v1/{time,micro_time}.go,
pkg/api/resource/quantity.go; sigs.k8s.io/structured-merge-diff v6.3.2 typed/{validate,helpers}.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandbox.apiserver import golang, quantities
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.schema.types import Node

_GO = {"string": "string", "integer": "int32", "number": "float64", "boolean": "bool"}
_INT32, _INT64 = 2**31, 2**63


class Repeating(dict[str, Any]):
    """An object whose text gave some keys more than once; the last value counts, as for Go.

    :ivar repeated: those keys, in the order of their repetition.
    """

    def __init__(self, pairs: list[tuple[str, Any]], repeated: list[str]) -> None:
        super().__init__(pairs)
        self.repeated = repeated


def pairs_hook(pairs: list[tuple[str, Any]]) -> Obj:
    """For ``json.loads(object_pairs_hook=…)``: remember what keys were given more than once."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    repeated = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    return Repeating(pairs, repeated)


def duplicate_fields(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the keys that the text of a body repeats."""
    if isinstance(value, dict):
        for key in getattr(value, "repeated", ()):
            yield f"{path}.{key}" if path else key
        for key, member in value.items():
            yield from duplicate_fields(member, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from duplicate_fields(item, f"{path}[{index}]")


def json_type(value: Any) -> str:
    """As ``encoding/json`` calls it."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _whole(node: Node, value: Any) -> bool:
    """Whether a number fits the Go integer that the type stands for."""
    bound = _INT64 if node.format == "int64" else _INT32
    return isinstance(value, int) and not isinstance(value, bool) and -bound <= value < bound


def _fits(node: Node, value: Any) -> bool:
    match node.kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return _whole(node, value)
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


def _unreadable(node: Node, value: Any) -> str | None:
    """Why a value of the right JSON type does not stand for what it should: a quantity, bytes, a time."""
    if node.kind == "quantity":
        try:
            quantities.parse(value)
        except ValueError as problem:
            return str(problem)
        return None
    if node.kind != "string":
        return None
    if node.format == "byte":
        return golang.base64_problem(value)
    if node.name == "Time":
        return golang.time_problem(value, golang.SECONDS)
    if node.name == "MicroTime":
        return golang.time_problem(value, golang.MICROSECONDS)
    return None


Mismatch = tuple[Node, Any, str, str]


def _first(node: Node, value: Any, path: str = "", owner: str = "") -> Mismatch | str | None:
    """The first problem in the order of the text: (type, value, path, struct it is in) or what a decoder says."""
    if value is None:
        return None
    if not _fits(node, value):
        return node, value, path, owner
    if isinstance(value, dict) and node.kind in ("struct", "map"):
        inside = node.name if node.kind == "struct" and node.name else owner
        for key, member in value.items():
            child = node.field(key)
            if child is not None and child.kind != "any":
                found = _first(child, member, f"{path}.{key}" if path else key, inside)
                if found is not None:
                    return found
    elif isinstance(value, list) and node.kind == "list":
        for item in value:
            found = _first(node.items, item, path, owner)
            if found is not None:
                return found
    else:
        return _unreadable(node, value)
    return None


def decoding_error(node: Node, value: Any) -> str | None:
    """The text of Go's JSON decoder for the first value that it cannot read."""
    found = _first(node, value)
    if found is None or isinstance(found, str):
        return found
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
    shown = json_type(got)
    if shown == "number" and wanted.kind == "integer":
        shown = f"number {got}"
    return f"json: cannot unmarshal {shown} into Go struct field {owner}.{path} of type {go_type}"


def unreadable(node: Node, value: Any) -> str | None:
    """What a decoder says of the first value that has the right type and cannot be read; server-side apply asks so."""
    found = _first(node, value)
    return found if isinstance(found, str) else None


def typed_errors(node: Node, value: Any, path: str = "") -> Iterator[str]:
    """
    What keeps an applied configuration from being typed, in the order in which it is walked.

    A wrong type is reported for the first value only; items without any of their keys, and items that repeat them,
    for the list that they are in.
    """
    yield from _wrong_type(node, value)
    yield from _keys(node, value, path)


def _wrong_type(node: Node, value: Any) -> Iterator[str]:
    found = _first(node, value)
    if found is None or isinstance(found, str):
        return
    wanted, got, path, _ = found
    if wanted.kind == "integer" and isinstance(got, (int, float)) and not isinstance(got, bool):
        return  # typed as 'numeric' alone; conversion refuses it later
    expected = {
        "string": "string",
        "integer": "numeric (int or float)",
        "number": "numeric (int or float)",
        "boolean": "boolean",
        "list": "list",
    }.get(wanted.kind, "map")
    shown = {"bool": "boolean", "array": "list", "object": "map"}.get(json_type(got), json_type(got))
    if shown == "number":
        shown = "int" if isinstance(got, int) else "float"
    yield f".{path}: expected {expected}, got {shown}"


def _keys(node: Node, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and node.kind in ("struct", "map") and not node.atomic:
        for key, member in value.items():
            child = node.field(key)
            if child is not None and isinstance(member, (dict, list)):
                yield from _keys(child, member, f"{path}.{key}")
    elif isinstance(value, list) and node.kind == "list" and not node.atomic:
        yield from _items(node, value, path)


def _items(node: Node, items: list[Any], path: str) -> Iterator[str]:
    seen: list[Any] = []
    for index, item in enumerate(items):
        if node.keys:
            if not isinstance(item, dict):
                yield f"{path}: element {index}: associative list with keys may not have non-map elements"
                return
            keys = {key: item.get(key, node.key_default(key)) for key in node.keys}
            identity: Any = {key: keys[key] for key in sorted(keys) if keys[key] is not None}
            if not identity:
                names = " ".join(golang.quote(key) for key in node.keys)
                yield (
                    f"{path}: element {index}: associative list with keys has an element that omits all key fields "
                    f"[{names}] (and doesn't have default values for any key fields)"
                )
                return
            shown = ",".join(f"{key}={_compact(part)}" for key, part in identity.items())
            element = f"[{shown}]"
        else:
            identity, element = item, f"[={_compact(item)}]"
        if identity in seen:
            yield f"{path}: duplicate entries for key {element}"
        seen.append(identity)
        yield from _keys(node.items, item, f"{path}{element}")


def _compact(value: Any) -> str:
    return (
        golang.quote(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    )
