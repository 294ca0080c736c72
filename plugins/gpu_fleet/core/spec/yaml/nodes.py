"""The values of a cluster file with their lines, and the error that names such a line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gpu_fleet.core.errors import SpecError


@dataclass
class Node:
    """A value, its place in the file, and its parts.

    :ivar parts: of a mapping by key, of a list by index: they lead from a field to its line.
    :ivar nodes: how many values it has, with aliases expanded.
    :ivar characters: the characters of its scalars and keys, with aliases expanded.
    """

    value: Any
    line: int
    column: int
    parts: dict[str | int, Node] = field(default_factory=dict)
    nodes: int = 1
    characters: int = 0


@dataclass(frozen=True)
class Document:
    """The one value of a cluster file."""

    root: Node | None

    @property
    def value(self) -> Any:
        """Plain values: None, bool, int, finite float, str, list, and dict with keys of str. Parts may be shared."""
        return None if self.root is None else self.root.value

    def place(self, path: str) -> str:
        """``line 12, column 5`` of a dotted field such as ``nodePools[0].sharing.replicas``, or of the innermost part
        of it that the file has; empty if the file has no part of it.
        """
        if self.root is None:
            return ""
        node, found, rest = self.root, False, path
        while rest:
            part = _next_part(node, rest)
            if part is None:
                break
            name, rest = part
            node, found = node.parts[name], True
        return f"line {node.line}, column {node.column}" if found else ""


def _next_part(node: Node, rest: str) -> tuple[str | int, str] | None:
    """The longest key (it may contain dots), or the index, at the beginning of a path, and the rest of the path."""
    index = re.match(r"\[([0-9]{1,6})\]\.?", rest)
    if index is not None:
        number = int(index[1])
        return (number, rest[index.end() :]) if number in node.parts else None
    for cut in [len(rest), *(at for at in range(len(rest) - 1, 0, -1) if rest[at] in ".[")]:
        if rest[:cut] in node.parts:
            return rest[:cut], rest[cut:].removeprefix(".")
    return None


def at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def refuse(message: str, remedy: str, mark: Any = None, path: str = "the file") -> NoReturn:
    raise SpecError(message, field=path, remedy=remedy, place=at(mark) if mark is not None else "")
