"""The three client-side patch formats: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.

Strategic merge: apimachinery pkg/util/strategicpatch/patch.go; directives ``$patch``, ``$retainKeys``,
``$deleteFromPrimitiveList/…``, ``$setElementOrder/…``.
"""

from __future__ import annotations

from typing import Any

from sandbox.apiserver.errors import bad_request, unprocessable
from sandbox.apiserver.jsontools import Obj, clone, equal
from sandbox.apiserver.schema.types import ANY, Node

_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"
_DELETE_PRIMITIVE = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


def merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return clone(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: Obj, operations: list[Any]) -> Obj:
    """
    :raises ApiError: 422 if an operation does not apply (a failed ``test`` included).
    """
    document: Any = clone(target)
    for operation in operations:
        try:
            document = _operate(document, operation)
        except (KeyError, IndexError, ValueError, TypeError) as problem:
            raise unprocessable() from problem
    if not isinstance(document, dict):
        raise bad_request("json patch left no object")
    return document


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise ValueError(f"invalid pointer {text}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/")]


def _lookup(document: Any, parts: list[str]) -> Any:
    for part in parts:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _add(document: Any, parts: list[str], value: Any) -> Any:
    if not parts:
        return value
    parent, last = _lookup(document, parts[:-1]), parts[-1]
    if isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        if not 0 <= index <= len(parent):
            raise IndexError(f"index {last} is out of bounds")
        parent.insert(index, value)
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise ValueError(f"add operation does not apply: doc is missing path: {last}")
    return document


def _drop(document: Any, parts: list[str]) -> Any:
    parent, last = _lookup(document, parts[:-1]), parts[-1]
    if isinstance(parent, list):
        return parent.pop(int(last))
    return parent.pop(last)


def _operate(document: Any, operation: Obj) -> Any:
    parts = _pointer(operation["path"])
    match operation["op"]:
        case "add":
            return _add(document, parts, clone(operation["value"]))
        case "replace":
            if parts:
                _drop(document, parts)
            return _add(document, parts, clone(operation["value"]))
        case "remove":
            _drop(document, parts)
            return document
        case "move":
            return _add(document, parts, _drop(document, _pointer(operation["from"])))
        case "copy":
            return _add(document, parts, clone(_lookup(document, _pointer(operation["from"]))))
        case "test":
            if not equal(_lookup(document, parts), operation["value"]):
                raise ValueError(f"testing value {operation['path']} failed")
            return document
        case other:
            raise ValueError(f"unexpected kind: {other}")


def strategic_patch(node: Node, target: Any, patch: Obj) -> Any:
    """``patch`` merged into ``target`` by the merge keys of the type."""
    directive = patch.get(_DIRECTIVE)
    if directive == "delete":
        return {}
    if directive == "replace":
        return _plain({key: value for key, value in patch.items() if key != _DIRECTIVE})
    result = dict(target) if isinstance(target, dict) else {}
    if _RETAIN in patch:
        result = {key: value for key, value in result.items() if key in patch[_RETAIN]}
    for key, value in patch.items():
        if key.startswith("$"):
            if key.startswith(_DELETE_PRIMITIVE):
                name = key.removeprefix(_DELETE_PRIMITIVE)
                result[name] = [item for item in result.get(name) or [] if item not in value]
            continue
        child = node.field(key) or ANY
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            replace = "replace" in child.strategies
            result[key] = _plain(value) if replace else strategic_patch(child, result.get(key), value)
        elif isinstance(value, list) and "merge" in child.strategies:
            result[key] = _merge_list(child, result.get(key) or [], value)
        else:
            result[key] = _plain(value)
    for key, order in patch.items():
        if key.startswith(_ORDER):
            name = key.removeprefix(_ORDER)
            child = node.field(name) or ANY
            if result.get(name):
                result[name] = _reorder(child, result[name], order)
    return result


def _plain(value: Any) -> Any:
    """A copy without directives and nulls."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not key.startswith("$") and item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value if not (isinstance(item, dict) and item.get(_DIRECTIVE))]
    return value


def _merge_list(node: Node, current: list[Any], patch: list[Any]) -> Any:
    key = node.merge_key
    if not key:
        return current + [item for item in patch if item not in current]
    if any(isinstance(item, dict) and item.get(_DIRECTIVE) == "replace" for item in patch):
        return _plain([item for item in patch if item.get(_DIRECTIVE) != "replace"])
    merged = list(current)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        same = [index for index, existing in enumerate(merged) if existing.get(key) == item[key]]
        if item.get(_DIRECTIVE) == "delete":
            merged = [existing for existing in merged if existing.get(key) != item[key]]
        elif same:
            merged[same[0]] = strategic_patch(node.items, merged[same[0]], item)
        else:
            merged.append(strategic_patch(node.items, {}, item))
    return merged


def _reorder(node: Node, items: list[Any], order: list[Any]) -> list[Any]:
    """Items in the order that the client asked for; those it does not name keep their place after the ones before."""
    key = node.merge_key
    wanted = [entry.get(key) if key and isinstance(entry, dict) else entry for entry in order]

    def rank(item: Any) -> int:
        identity = item.get(key) if key else item
        return wanted.index(identity) if identity in wanted else len(wanted)

    return sorted(items, key=rank)
