"""Server-side apply: merging a configuration into an object, field ownership, conflicts.

Follows "Server-Side Apply" in the Kubernetes documentation; texts from apiserver
pkg/endpoints/handlers/fieldmanager/fieldmanager.go and apimachinery pkg/util/managedfields/internal/conflict.go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, clone, now
from sandbox.apiserver.patches import fieldpaths
from sandbox.apiserver.patches.fieldpaths import Path, Paths, compare, item_element, owned
from sandbox.apiserver.schema.types import ANY, Node

# Written by the server, so owned by no manager (managedfields/internal/stripmeta.go).
_STRIPPED: Paths = {
    ("f:apiVersion",),
    ("f:kind",),
    ("f:metadata",),
    *(
        ("f:metadata", f"f:{name}")
        for name in (
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "generation",
            "managedFields",
            "resourceVersion",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        )
    ),
}


@dataclass(frozen=True)
class Entry:
    """What one manager owns through one operation."""

    manager: str
    operation: str
    api_version: str
    subresource: str
    time: str
    paths: frozenset[Path]

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.manager, self.operation, self.subresource

    def show(self) -> str:
        text = f'"{self.manager}"'
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        return f"{text} using {self.api_version}" if self.operation == "Update" else text


def read_entries(obj: Obj) -> list[Entry]:
    return [
        Entry(
            manager=item.get("manager", ""),
            operation=item.get("operation", "Update"),
            api_version=item.get("apiVersion", ""),
            subresource=item.get("subresource", ""),
            time=item.get("time", ""),
            paths=frozenset(fieldpaths.from_fields(item.get("fieldsV1") or {})),
        )
        for item in obj["metadata"].get("managedFields") or []
    ]


def write_entries(obj: Obj, entries: list[Entry]) -> None:
    """Store entries in ``metadata.managedFields``: appliers first, then by time and name, as the server sorts them."""
    written = []
    for entry in sorted(entries, key=lambda item: (item.operation, item.time, item.manager)):
        if not entry.paths:
            continue
        item: Obj = {
            "manager": entry.manager,
            "operation": entry.operation,
            "apiVersion": entry.api_version,
            "time": entry.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fieldpaths.to_fields(set(entry.paths)),
        }
        if entry.subresource:
            item["subresource"] = entry.subresource
        written.append(item)
    if written:
        obj["metadata"]["managedFields"] = written
    else:
        obj["metadata"].pop("managedFields", None)


def record_update(node: Node, old: Obj | None, new: Obj, manager: str, api_version: str, subresource: str) -> None:
    """Give ``manager`` what a plain write (not an apply) added or changed. ``new`` is amended in place."""
    before: Obj = old if old is not None else {"metadata": {}}
    difference = compare(node, _unmanaged(before), _unmanaged(new))
    written = difference.written - _STRIPPED
    if old is None:  # a new object's status is set by the server, not by the client
        written = {path for path in written if path[0] != "f:status"}
    removed = difference.removed
    entries = read_entries(new)
    if not written and not removed:
        return
    identity = (manager, "Update", subresource)
    kept: list[Entry] = []
    mine: frozenset[Path] = frozenset()
    unchanged: Entry | None = None
    for entry in entries:
        if entry.identity == identity:
            mine = entry.paths - removed
            unchanged = entry
        else:
            kept.append(replace(entry, paths=entry.paths - written - removed))
    paths = mine | written
    if paths:
        same = unchanged is not None and paths == unchanged.paths
        time = unchanged.time if same and unchanged is not None else now()
        kept.append(Entry(manager, "Update", api_version, subresource, time, frozenset(paths)))
    write_entries(new, kept)


def _unmanaged(obj: Obj) -> Obj:
    return {**obj, "metadata": {key: value for key, value in obj["metadata"].items() if key != "managedFields"}}


def merge(node: Node, live: Any, config: Any) -> Any:
    """``config`` laid over ``live``: maps and associative lists merge, everything else is replaced."""
    if isinstance(live, dict) and isinstance(config, dict) and not node.atomic:
        merged = dict(live)
        for key, value in config.items():
            child = node.field(key) or ANY
            merged[key] = merge(child, live[key], value) if key in live else clone(value)
        return merged
    if isinstance(live, list) and isinstance(config, list) and not node.atomic:
        items = {item_element(node, item): item for item in live}
        for item in config:
            element = item_element(node, item)
            items[element] = merge(node.items, items[element], item) if element in items else clone(item)
        return list(items.values())
    return clone(config)


def _remove(node: Node, value: Any, path: Path) -> Any:
    """``value`` without what is at ``path``; containers that this empties go too."""
    element, rest = path[0], path[1:]
    if isinstance(value, dict) and element.startswith("f:"):
        key = element[2:]
        if key not in value:
            return value
        if not rest:
            return {name: member for name, member in value.items() if name != key}
        child = _remove(node.field(key) or ANY, value[key], rest)
        if child in ({}, []) and value[key] not in ({}, []):
            return {name: member for name, member in value.items() if name != key}
        return {**value, key: child}
    if isinstance(value, list) and fieldpaths.is_item(element):
        kept = []
        for item in value:
            if item_element(node, item) != element:
                kept.append(item)
            elif rest:
                kept.append(_remove(node.items, item, rest))
        return kept
    return value


def apply(
    node: Node, live: Obj | None, config: Obj, manager: str, api_version: str, subresource: str, *, force: bool
) -> Obj:
    """
    The object that results when ``manager`` applies ``config``, with its managedFields.

    :param live: the stored object, ``None`` if there is none.
    :raises ApiError: 409 with one cause per field that another manager owns with another value.
    """
    claimed = owned(node, _unmanaged({**config, "metadata": config.get("metadata", {})})) - _STRIPPED
    if live is None:
        created: Obj = clone(config)
        created["metadata"].pop("managedFields", None)
        write_entries(created, [Entry(manager, "Apply", api_version, subresource, now(), frozenset(claimed))])
        return created
    entries = read_entries(live)
    identity = (manager, "Apply", subresource)
    previous = next((entry for entry in entries if entry.identity == identity), None)
    others = [entry for entry in entries if entry.identity != identity]
    base = _unmanaged(live)
    merged: Obj = merge(node, base, _unmanaged(config))
    changed = compare(node, base, merged).written
    conflicts = [(entry, path) for entry in others for path in sorted(entry.paths & changed)]
    if conflicts and not force:
        raise _conflict(conflicts)
    if conflicts:
        others = [replace(entry, paths=entry.paths - changed) for entry in others]
    if previous is not None:
        still = set(claimed).union(*(entry.paths for entry in others))
        for path in sorted(previous.paths - claimed, key=len):
            if not fieldpaths.covers(still, path):
                merged = _remove(node, merged, path)
    same = previous is not None and previous.paths == frozenset(claimed) and merged == base
    time = previous.time if same and previous is not None else now()
    mine = Entry(manager, "Apply", api_version, subresource, time, frozenset(claimed))
    merged["metadata"] = dict(merged["metadata"])
    write_entries(merged, [*others, mine])
    return merged


def _conflict(conflicts: list[tuple[Entry, Path]]) -> ApiError:
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {entry.show()}", "field": fieldpaths.show(path)}
        for entry, path in conflicts
    ]
    if len(conflicts) == 1:
        entry, path = conflicts[0]
        text = f"Apply failed with 1 conflict: conflict with {entry.show()}: {fieldpaths.show(path)}"
    else:
        lines: list[str] = []
        for shown in sorted({entry.show() for entry, _ in conflicts}):
            lines.append(f"conflicts with {shown}:")
            lines.extend(f"- {fieldpaths.show(path)}" for entry, path in conflicts if entry.show() == shown)
        text = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", text, details={"causes": causes})
