"""From the bytes of a cluster file to plain values, with bounds and without guessing.

A file is read event by event, so that neither its nesting nor its aliases are ever followed before they are counted: a
few hundred bytes of nested anchors would otherwise become gigabytes (of strings in a pool's labels, or of JSON when the
digest is made), and all clusters are parsed in one process.

Plain scalars mean what YAML 1.1 and YAML 1.2 agree on. Where they differ, the file is refused and says what to write:
``yes`` is true in one and text in the other, ``010`` is 8 or 10, ``1:30`` is 90 or text, ``1e3`` is text or 1000
(https://yaml.org/type/ of YAML 1.1, https://yaml.org/spec/1.2.2/#103-core-schema of YAML 1.2).
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from gpu_fleet.core.errors import SpecError

#: A cluster file is a page or two; one pool takes less than 1 kB.
MAX_BYTES = 256 * 1024
#: Scalars, lists and mappings of a file, with each alias counted as what it stands for.
MAX_NODES = 20_000
#: Characters of all scalars, with each alias counted as what it stands for.
MAX_CHARACTERS = 4 * MAX_BYTES
#: Levels of nesting. The deepest value of the charts, an affinity's, is at about 15.
MAX_DEPTH = 40
#: Longest key: a label's has at most 317 characters.
MAX_KEY = 512

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
#: Booleans of YAML 1.1 alone.
_OLD_BOOLEANS = {
    text: word
    for word, forms in (("true", ("yes", "on")), ("false", ("no", "off")))
    for form in forms
    for text in (form, form.capitalize(), form.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"([-+]?(0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
#: What one version of YAML, or each in its own way, reads as a number.
_OTHER_NUMBERS = (
    re.compile(r"[-+]?0[xX][0-9a-fA-F_]+"),
    re.compile(r"[-+]?0[oO][0-7_]+"),
    re.compile(r"[-+]?0[bB][01_]+"),
    re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"),
    re.compile(r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"),
)
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", re.DOTALL)
#: What YAML does not allow in a file (https://yaml.org/spec/1.2.2/#51-character-set).
_NOT_PRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_PREFIX = "tag:yaml.org,2002:"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Node:
    """A value, where it stands, and its parts.

    :ivar parts: of a mapping by key, of a list by index: the way from a field to its line.
    :ivar nodes: how many values it holds, aliases expanded; ``characters``: of its scalars and keys.
    """

    value: Any
    line: int
    column: int
    parts: dict[str | int, _Node] = field(default_factory=dict)
    nodes: int = 1
    characters: int = 0


@dataclass
class _Open:
    """A list or mapping of which the end has not been read."""

    node: _Node
    anchor: str | None
    key: str | None = None
    key_mark: Any = None
    waits_for_value: bool = False
    merges: list[_Node] = field(default_factory=list)
    is_merge: bool = False
    merged: bool = False


@dataclass(frozen=True)
class Document:
    """The one value of a cluster file."""

    root: _Node | None

    @property
    def value(self) -> Any:
        """Plain values: None, bool, int, finite float, str, list, and dict with keys of str. Parts may be shared."""
        return None if self.root is None else self.root.value

    def place(self, path: str) -> str:
        """``line 12, column 5`` of a dotted field such as ``nodePools[0].sharing.replicas``, or of the innermost part
        of it that the file has; empty if it has none of it.
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


def _next_part(node: _Node, rest: str) -> tuple[str | int, str] | None:
    """The longest key (a key may hold dots) or the index with which the rest of a path begins, and what follows it."""
    index = re.match(r"\[([0-9]{1,6})\]\.?", rest)
    if index is not None:
        number = int(index[1])
        return (number, rest[index.end() :]) if number in node.parts else None
    for cut in [len(rest), *(at for at in range(len(rest) - 1, 0, -1) if rest[at] in ".[")]:
        if rest[:cut] in node.parts:
            return rest[:cut], rest[cut:].removeprefix(".")
    return None


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _refuse(message: str, remedy: str, mark: Any = None, path: str = "the file") -> NoReturn:
    raise SpecError(message, field=path, remedy=remedy, place=_at(mark) if mark is not None else "")


def read_document(raw: bytes) -> Document:
    """The one document in the bytes of a cluster file.

    :raises SpecError: too large, not UTF-8, not YAML, several documents, aliases or nesting beyond the bounds, a value
        on whose meaning the versions of YAML disagree; says where and what to write.
    """
    text = _decoded(raw)
    try:
        return _Reader().read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or str(getattr(error, "reason", "")) or str(error).splitlines()[0]
        lines = text.splitlines()
        tab = mark is not None and mark.line < len(lines) and lines[mark.line][mark.column :].startswith("\t")
        hint = "indent with spaces, not tabs" if tab else "correct it"
        raise SpecError(
            f"is not valid YAML: {what}", field="the file", remedy=hint, place=_at(mark) if mark else ""
        ) from error


def _decoded(raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        _refuse("is too large", f"a cluster file has at most {MAX_BYTES // 1024} KiB")
    for bom, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(bom):
            _refuse(f"is {encoding}", "save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(
            f"is not UTF-8 (byte {error.start})", field="the file", remedy="save it as UTF-8", place=f"line {line}"
        ) from error
    control = _NOT_PRINTABLE.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        utf16 = "; it may be UTF-16, or no text at all" if control[0] == "\0" else ""
        raise SpecError(
            f"holds the control character {control[0]!r}{utf16}",
            field="the file",
            remedy="remove it, and save the file as UTF-8",
            place=f"line {line}",
        )
    return text


class _Reader:
    """Builds the values of one file; every node is counted before it is made."""

    def __init__(self) -> None:
        self.open: list[_Open] = []
        self.anchors: dict[str, _Node] = {}
        self.unfinished: set[str] = set()
        self.root: _Node | None = None
        self.documents = 0
        self.nodes = 0
        self.characters = 0

    def read(self, text: str) -> Document:
        for event in yaml.parse(text, Loader=_Loader):
            match event:
                case yaml.DocumentStartEvent():
                    self.documents += 1
                    if self.documents > 1:
                        _refuse("holds several documents", "write one file per cluster", event.start_mark)
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
            _refuse(
                f"the file has more than {MAX_NODES} values when its aliases are expanded",
                "write fewer, or use no aliases",
                event.start_mark,
                self.path,
            )
        if self.characters > MAX_CHARACTERS:
            _refuse(
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
            _refuse("a list or mapping is no key", "write a word", event.start_mark, self.path)
        if len(self.open) >= MAX_DEPTH:
            _refuse(f"is nested deeper than {MAX_DEPTH} levels", "flatten it", event.start_mark, _short(self.path))
        self._count(event, 1, 0)
        if event.anchor is not None:
            self._new_anchor(event)
            self.unfinished.add(event.anchor)
        mark = event.start_mark
        node = _Node({} if mapping else [], mark.line + 1, mark.column + 1)
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
            _refuse(f"*{event.anchor} contains itself", "remove the alias", event.start_mark, self.path)
        node = self.anchors.get(event.anchor)
        if node is None:
            _refuse(f"no anchor &{event.anchor} comes before the alias", "define it", event.start_mark, self.path)
        self._count(event, node.nodes, node.characters)
        if self._is_key():
            if not isinstance(node.value, str):
                _refuse(f"*{event.anchor} is no word, so no key", "write the key", event.start_mark, self.path)
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
                _refuse("duplicate key '<<'", "remove one, or write <<: [*a, *b]", event.start_mark, self.path)
            level.merged = level.is_merge = level.waits_for_value = True
            level.key, level.key_mark = "<<", event.start_mark
            return
        value = self._value(event, text, is_key)
        if is_key:
            if not isinstance(value, str):
                _refuse(
                    f"the key {_short(text)} is no text", f'quote it: "{_short(text)}"', event.start_mark, self.path
                )
            self._key(event, value)
            if event.anchor is not None:
                self.anchors[event.anchor] = _Node(value, 0, 0, characters=len(text))
            return
        mark = event.start_mark
        self._add(event, _Node(value, mark.line + 1, mark.column + 1, characters=len(text)), event.anchor)

    def _key(self, event: Any, key: str) -> None:
        level = self.open[-1]
        if len(key) > MAX_KEY:
            _refuse(f"a key has {len(key)} characters", f"use at most {MAX_KEY}", event.start_mark, self.path)
        if key in level.node.value:
            _refuse(f"duplicate key {key!r}", "remove one", event.start_mark, self.path)
        level.key, level.key_mark, level.waits_for_value = key, event.start_mark, True

    def _new_anchor(self, event: Any) -> None:
        if event.anchor in self.anchors or event.anchor in self.unfinished:
            _refuse(f"the anchor &{event.anchor} is defined twice", "rename one", event.start_mark, self.path)

    def _add(self, event: Any, node: _Node, anchor: str | None) -> None:
        """The finished node goes where its parent waits for it."""
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
            # A mapping or list inside is pointed at by its key: that is where a reader looks.
            mark = level.key_mark
            parent.parts[key] = _Node(
                node.value, mark.line + 1, mark.column + 1, node.parts, node.nodes, node.characters
            )
            parent.value[key] = node.value
            parent.characters += len(key)
            parent.nodes += 1
        level.key, level.waits_for_value, level.is_merge = None, False, False
        parent.nodes += node.nodes
        parent.characters += node.characters

    def _take_merges(self, event: Any, level: _Open, node: _Node) -> None:
        found = [node] if isinstance(node.value, dict) else [node.parts[index] for index in range(len(node.parts))]
        if not isinstance(node.value, dict | list) or not all(isinstance(item.value, dict) for item in found):
            _refuse("<< takes a mapping or a list of mappings", "write <<: *anchor", event.start_mark, self.path)
        level.merges = found

    def _merge(self, event: Any, node: _Node, other: _Node) -> None:
        """Keys of the other mapping that this one does not have; the first of several wins (https://yaml.org/type/merge)."""
        for key, value in other.value.items():
            if key not in node.value:
                part = other.parts[key]
                node.value[key], node.parts[key] = value, part
                self._count(event, 1, 0)

    # --- values --------------------------------------------------------------------------------------------------
    def _refuse_tag(self, event: Any) -> NoReturn:
        tag = event.tag.replace(_PREFIX, "!!")
        _refuse(f"the tag {_short(tag)} is not used in cluster files", "remove it", event.start_mark, self.path)

    def _value(self, event: Any, text: str, is_key: bool) -> Any:
        """The scalar's value: text if it is quoted or tagged so, else what all versions of YAML read."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            _refuse("holds half of a surrogate pair", "write the character itself", event.start_mark, self.path)
        if "\0" in text:
            _refuse("holds a NUL character", "remove it", event.start_mark, self.path)
        if event.tag not in (None, "!", _PREFIX + "str") and not event.implicit[0]:
            self._refuse_tag(event)
        if event.tag is not None or not event.implicit[0]:
            return text
        if is_key and text in _NULL:
            _refuse("a key is missing", "write a key before the ':'", event.start_mark, self.path)
        return self._plain(event, text)

    def _plain(self, event: Any, text: str) -> Any:
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INTEGER.fullmatch(text):
            # Longer than any number of 64 bits: not converted, as that takes ever longer.
            number = int(text) if len(text) <= 20 else _HIGHEST + 1
            if not _LOWEST <= number <= _HIGHEST:
                self._ambiguous(event, text, "has more than 64 bits", "write a smaller number")
            return number
        if _FLOAT.fullmatch(text):
            return self._float(event, text)
        if text in _OLD_BOOLEANS:
            word = _OLD_BOOLEANS[text]
            self._ambiguous(event, text, f"is {word} in YAML 1.1 and text in YAML 1.2", f"write {word}")
        if _NOT_FINITE.fullmatch(text):
            self._ambiguous(event, text, "is no number that JSON or Helm can hold", "write a finite number")
        if any(pattern.fullmatch(text) for pattern in _OTHER_NUMBERS):
            self._ambiguous(event, text, "is another number in YAML 1.1 than in YAML 1.2", "write a plain number")
        if _TIMESTAMP.fullmatch(text):
            self._ambiguous(event, text, "is a date in YAML 1.1 and text in YAML 1.2")
        if text == "=":
            self._ambiguous(event, text, "has a meaning of its own in YAML 1.1")
        return text

    def _float(self, event: Any, text: str) -> float:
        value = float(text) if len(text) <= 64 else math.inf
        if not math.isfinite(value):
            self._ambiguous(event, text, "does not fit into a floating-point number", "write a shorter one")
        return value

    def _ambiguous(self, event: Any, text: str, why: str, instead: str = "") -> NoReturn:
        quoted = f'"{_short(text)}"'
        remedy = f"{instead}, or {quoted} if it is text" if instead else f"quote it: {quoted}"
        _refuse(f"{_short(text)} {why}", remedy, event.start_mark, self.path)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
