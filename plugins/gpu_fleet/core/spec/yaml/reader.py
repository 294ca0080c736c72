"""Builds the values of a cluster file from its YAML events; counts every node before it is made.

The file is read event by event, so that its nesting and its aliases are counted before they are followed: a few hundred
bytes of nested anchors would otherwise become gigabytes (of strings in a pool's labels, or of JSON when the digest is
made), and all clusters are parsed in one process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from gpu_fleet.core.spec.yaml.nodes import Document, Node, refuse
from gpu_fleet.core.spec.yaml.scalars import NULL, Ambiguous, plain_value

#: Scalars, lists and mappings of a file, with each alias counted as what it stands for.
MAX_NODES = 20_000
#: Characters of all scalars, with each alias counted as what it stands for.
MAX_CHARACTERS = 1024 * 1024
#: Levels of nesting. The deepest value of the charts, an affinity's, is at about 15.
MAX_DEPTH = 40
#: Longest key: a label's has at most 317 characters.
MAX_KEY = 512

_PREFIX = "tag:yaml.org,2002:"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Open:
    """A list or mapping whose end has not been read yet."""

    node: Node
    anchor: str | None
    key: str | None = None
    key_mark: Any = None
    waits_for_value: bool = False
    merges: list[Node] = field(default_factory=list)
    is_merge: bool = False
    merged: bool = False


class Reader:
    """Builds the values of one file; every node is counted before it is made."""

    def __init__(self) -> None:
        self.open: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.unfinished: set[str] = set()
        self.root: Node | None = None
        self.documents = 0
        self.nodes = 0
        self.characters = 0

    def read(self, text: str) -> Document:
        for event in yaml.parse(text, Loader=_Loader):
            match event:
                case yaml.DocumentStartEvent():
                    self.documents += 1
                    if self.documents > 1:
                        refuse("holds several documents", "write one file per cluster", event.start_mark)
                case yaml.AliasEvent():
                    self._alias(event)
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self._begin(event)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self._end(event)
        return Document(self.root)

    # --- where ---------------------------------------------------------------------------------------------------
    @property
    def path(self) -> str:
        """Dotted path of the value that is read now."""
        path = ""
        for level in self.open:
            if isinstance(level.node.value, list):
                path += f"[{len(level.node.value)}]"
            elif level.key is not None:
                path += f".{level.key}" if path else level.key
        return path or "the file"

    def _count(self, event: Any, nodes: int, characters: int) -> None:
        self.nodes += nodes
        self.characters += characters
        if self.nodes > MAX_NODES:
            refuse(
                f"the file has more than {MAX_NODES} values when its aliases are expanded",
                "write fewer, or use no aliases",
                event.start_mark,
                self.path,
            )
        if self.characters > MAX_CHARACTERS:
            refuse(
                f"the file has more than {MAX_CHARACTERS // 1024} KiB when its aliases are expanded",
                "write less, or use no aliases",
                event.start_mark,
                self.path,
            )

    # --- nodes ---------------------------------------------------------------------------------------------------
    def _is_key(self) -> bool:
        return bool(self.open) and isinstance(self.open[-1].node.value, dict) and not self.open[-1].waits_for_value

    def _begin(self, event: Any) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", _PREFIX + ("map" if mapping else "seq")):
            self._refuse_tag(event)
        if self._is_key():
            refuse("a list or mapping cannot be a key", "write a word", event.start_mark, self.path)
        if len(self.open) >= MAX_DEPTH:
            refuse(f"is nested deeper than {MAX_DEPTH} levels", "flatten it", event.start_mark, _short(self.path))
        self._count(event, 1, 0)
        if event.anchor is not None:
            self._new_anchor(event)
            self.unfinished.add(event.anchor)
        mark = event.start_mark
        node = Node({} if mapping else [], mark.line + 1, mark.column + 1)
        self.open.append(_Open(node, event.anchor))

    def _end(self, event: Any) -> None:
        level = self.open.pop()
        for other in level.merges:
            self._merge(event, level.node, other)
        if level.anchor is not None:
            self.unfinished.discard(level.anchor)
        self._add(event, level.node, level.anchor)

    def _alias(self, event: Any) -> None:
        if event.anchor in self.unfinished:
            refuse(f"*{event.anchor} contains itself", "remove the alias", event.start_mark, self.path)
        node = self.anchors.get(event.anchor)
        if node is None:
            refuse(f"no anchor &{event.anchor} comes before the alias", "define it", event.start_mark, self.path)
        self._count(event, node.nodes, node.characters)
        if self._is_key():
            if not isinstance(node.value, str):
                refuse(
                    f"*{event.anchor} is not a word, so it cannot be a key",
                    "write the key",
                    event.start_mark,
                    self.path,
                )
            self._key(event, node.value)
            return
        self._add(event, node, None)

    def _scalar(self, event: Any) -> None:
        text: str = event.value
        self._count(event, 1, len(text))
        if event.anchor is not None:
            self._new_anchor(event)
        is_key = self._is_key()
        if is_key and event.implicit[0] and text == "<<":
            level = self.open[-1]
            if level.merged:
                refuse("duplicate key '<<'", "remove one, or write <<: [*a, *b]", event.start_mark, self.path)
            level.merged = level.is_merge = level.waits_for_value = True
            level.key, level.key_mark = "<<", event.start_mark
            return
        value = self._value(event, text, is_key)
        if is_key:
            if not isinstance(value, str):
                refuse(
                    f"the key {_short(text)} is not text", f'quote it: "{_short(text)}"', event.start_mark, self.path
                )
            self._key(event, value)
            if event.anchor is not None:
                self.anchors[event.anchor] = Node(value, 0, 0, characters=len(text))
            return
        mark = event.start_mark
        self._add(event, Node(value, mark.line + 1, mark.column + 1, characters=len(text)), event.anchor)

    def _key(self, event: Any, key: str) -> None:
        level = self.open[-1]
        if len(key) > MAX_KEY:
            refuse(f"a key has {len(key)} characters", f"use at most {MAX_KEY}", event.start_mark, self.path)
        if key in level.node.value:
            refuse(f"duplicate key {key!r}", "remove one", event.start_mark, self.path)
        level.key, level.key_mark, level.waits_for_value = key, event.start_mark, True

    def _new_anchor(self, event: Any) -> None:
        if event.anchor in self.anchors or event.anchor in self.unfinished:
            refuse(f"the anchor &{event.anchor} is defined twice", "rename one", event.start_mark, self.path)

    def _add(self, event: Any, node: Node, anchor: str | None) -> None:
        """Add the finished node to its parent."""
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.open:
            self.root = node
            return
        level = self.open[-1]
        parent = level.node
        if level.is_merge:
            self._take_merges(event, level, node)
        elif isinstance(parent.value, list):
            parent.parts[len(parent.value)] = node
            parent.value.append(node.value)
        else:
            key = str(level.key)
            # The place of a nested mapping or list is that of its key, where a reader looks for it.
            mark = level.key_mark
            parent.parts[key] = Node(
                node.value, mark.line + 1, mark.column + 1, node.parts, node.nodes, node.characters
            )
            parent.value[key] = node.value
            parent.characters += len(key)
            parent.nodes += 1
        level.key, level.waits_for_value, level.is_merge = None, False, False
        parent.nodes += node.nodes
        parent.characters += node.characters

    def _take_merges(self, event: Any, level: _Open, node: Node) -> None:
        found = [node] if isinstance(node.value, dict) else [node.parts[index] for index in range(len(node.parts))]
        if not isinstance(node.value, dict | list) or not all(isinstance(item.value, dict) for item in found):
            refuse("<< takes a mapping or a list of mappings", "write <<: *anchor", event.start_mark, self.path)
        level.merges = found

    def _merge(self, event: Any, node: Node, other: Node) -> None:
        """Keys of the other mapping that this one does not have; the first of several wins
        (https://yaml.org/type/merge).
        """
        for key, value in other.value.items():
            if key not in node.value:
                part = other.parts[key]
                node.value[key], node.parts[key] = value, part
                self._count(event, 1, 0)

    # --- values --------------------------------------------------------------------------------------------------
    def _refuse_tag(self, event: Any) -> NoReturn:
        tag = event.tag.replace(_PREFIX, "!!")
        refuse(f"the tag {_short(tag)} is not used in cluster files", "remove it", event.start_mark, self.path)

    def _value(self, event: Any, text: str, is_key: bool) -> Any:
        """The scalar's value: text if it is quoted or tagged so, else what all versions of YAML read."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            refuse("holds half of a surrogate pair", "write the character itself", event.start_mark, self.path)
        if "\0" in text:
            refuse("holds a NUL character", "remove it", event.start_mark, self.path)
        if event.tag not in (None, "!", _PREFIX + "str") and not event.implicit[0]:
            self._refuse_tag(event)
        if event.tag is not None or not event.implicit[0]:
            return text
        if is_key and text in NULL:
            refuse("a key is missing", "write a key before the ':'", event.start_mark, self.path)
        return self._plain(event, text)

    def _plain(self, event: Any, text: str) -> Any:
        try:
            return plain_value(text)
        except Ambiguous as error:
            quoted = f'"{_short(text)}"'
            remedy = f"{error.instead}, or {quoted} if it is text" if error.instead else f"quote it: {quoted}"
            refuse(f"{_short(text)} {error.why}", remedy, event.start_mark, self.path)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
