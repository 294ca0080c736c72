"""Sets of field paths, as server-side apply keeps them per manager (structured-merge-diff fieldpath).

A path is a tuple of elements in the notation of ``FieldsV1``: ``f:name``, ``k:{"name":"x"}``, ``v:"a"``, ``i:0``.
"""

from __future__ import annotations

import json
from typing import Any

from sandbox.apiserver.jsontools import Obj, equal
from sandbox.apiserver.schema.types import Node

Path = tuple[str, ...]
Paths = set[Path]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def item_element(node: Node, item: Any) -> str:
    """The path element of an item of an associative list or a set."""
    if node.list_type == "map" and isinstance(item, dict):
        keys = {}
        for key in node.keys:
            value = item.get(key, node.key_default(key))
            if value is not None:
                keys[key] = value
        return "k:" + _compact(keys)
    return "v:" + _compact(item)


def is_item(element: str) -> bool:
    return element[0] in "kv"


def show(path: Path) -> str:
    """``.spec.containers[name="x"].image``"""
    text = []
    for element in path:
        what, rest = element[0], element[2:]
        if what == "f":
            text.append(f".{rest}")
        elif what == "k":
            pairs = ",".join(f"{key}={_compact(value)}" for key, value in json.loads(rest).items())
            text.append(f"[{pairs}]")
        elif what == "v":
            text.append(f"[={rest}]")
        else:
            text.append(f"[{rest}]")
    return "".join(text)


def owned(node: Node, value: Any, path: Path = (), into: Paths | None = None) -> Paths:
    """The paths that an applied configuration lays claim to: its leaves and the items of its associative lists."""
    found: Paths = set() if into is None else into
    if isinstance(value, dict) and not node.atomic and value:
        for key, member in value.items():
            child = node.field(key)
            if child is not None:
                owned(child, member, (*path, f"f:{key}"), found)
    elif isinstance(value, list) and not node.atomic and value:
        for item in value:
            inner = (*path, item_element(node, item))
            found.add(inner)
            if isinstance(item, dict):
                owned(node.items, item, inner, found)
    elif path:
        found.add(path)
    return found


def _all_paths(node: Node, value: Any, path: Path, found: Paths) -> None:
    """Everything inside a value that appeared or vanished, with the containers themselves."""
    if isinstance(value, dict) and not node.atomic and value:
        if path and (node.kind != "struct" or is_item(path[-1])):
            found.add(path)
        for key, member in value.items():
            child = node.field(key)
            if child is not None:
                _all_paths(child, member, (*path, f"f:{key}"), found)
    elif isinstance(value, list) and not node.atomic and value:
        found.add(path)
        for item in value:
            inner = (*path, item_element(node, item))
            if isinstance(item, dict):
                _all_paths(node.items, item, inner, found)
            found.add(inner)
    elif path:
        found.add(path)


class Difference:
    """What a write added, changed and removed."""

    def __init__(self) -> None:
        self.added: Paths = set()
        self.modified: Paths = set()
        self.removed: Paths = set()

    @property
    def written(self) -> Paths:
        return self.added | self.modified


def compare(node: Node, old: Any, new: Any) -> Difference:
    found = Difference()
    _compare(node, old, new, (), found)
    return found


def _compare(node: Node, old: Any, new: Any, path: Path, found: Difference) -> None:
    if old is new:
        return
    if not node.atomic and isinstance(old, dict) and isinstance(new, dict) and (old or new):
        for key in old.keys() | new.keys():
            child = node.field(key)
            if child is None:
                continue
            inner = (*path, f"f:{key}")
            if key not in old:
                _all_paths(child, new[key], inner, found.added)
            elif key not in new:
                _all_paths(child, old[key], inner, found.removed)
            else:
                _compare(child, old[key], new[key], inner, found)
    elif not node.atomic and isinstance(old, list) and isinstance(new, list) and (old or new):
        before = {item_element(node, item): item for item in old}
        after = {item_element(node, item): item for item in new}
        for element in before.keys() | after.keys():
            inner = (*path, element)
            if element not in before:
                _all_paths(node.items, after[element], inner, found.added)
                found.added.add(inner)
            elif element not in after:
                _all_paths(node.items, before[element], inner, found.removed)
                found.removed.add(inner)
            else:
                _compare(node.items, before[element], after[element], inner, found)
    elif not equal(old, new):
        found.modified.add(path)


def to_fields(paths: Paths) -> Obj:
    """``FieldsV1``: a trie with compact, sorted keys."""
    root: Obj = {}
    for path in sorted(paths):
        at = root
        for element in path:
            at = at.setdefault(element, {})
        at["."] = {}
    return _tidy(root)


def _tidy(trie: Obj) -> Obj:
    """Sort, and write a member without children as ``{}`` instead of ``{".": {}}``."""
    return {key: {} if key == "." or trie[key].keys() == {"."} else _tidy(trie[key]) for key in sorted(trie)}


def from_fields(fields: Obj, path: Path = ()) -> Paths:
    """The inverse of :func:`to_fields`."""
    found: Paths = set()
    for key, value in fields.items():
        if key == ".":
            found.add(path)
            continue
        inner = (*path, _normal(key))
        if value:
            found |= from_fields(value, inner)
        else:
            found.add(inner)
    return found


def _normal(element: str) -> str:
    if is_item(element):
        return element[:2] + _compact(json.loads(element[2:]))
    return element


def covers(paths: Paths, prefix: Path) -> bool:
    """Whether ``prefix`` or anything inside it is in the set."""
    return prefix in paths or any(path[: len(prefix)] == prefix for path in paths)
