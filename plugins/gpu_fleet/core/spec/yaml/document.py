"""From the bytes of a cluster file to plain values, with bounds and without guessing.

Aliases and nesting are counted before they are expanded (:mod:`gpu_fleet.core.spec.yaml.reader`), and a scalar has a
value only where YAML 1.1 and YAML 1.2 agree on it (:mod:`gpu_fleet.core.spec.yaml.scalars`).
"""

from __future__ import annotations

import codecs
import re

import yaml

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec.yaml.nodes import Document, at, refuse
from gpu_fleet.core.spec.yaml.reader import MAX_DEPTH, MAX_NODES, Reader

#: A cluster file is a page or two; one pool takes less than 1 kB.
MAX_BYTES = 256 * 1024

#: What YAML does not allow in a file (https://yaml.org/spec/1.2.2/#51-character-set).
_NOT_PRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_document(raw: bytes) -> Document:
    """The one document in the bytes of a cluster file.

    :raises SpecError: too large, not UTF-8, not YAML, several documents, aliases or nesting beyond the bounds, a value
        on whose meaning the versions of YAML disagree; says where and what to write.
    """
    text = _decoded(raw)
    try:
        return Reader().read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or str(getattr(error, "reason", "")) or str(error).splitlines()[0]
        lines = text.splitlines()
        tab = mark is not None and mark.line < len(lines) and lines[mark.line][mark.column :].startswith("\t")
        hint = "indent with spaces, not tabs" if tab else "correct it"
        raise SpecError(
            f"is not valid YAML: {what}", field="the file", remedy=hint, place=at(mark) if mark else ""
        ) from error


def _decoded(raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        refuse("is too large", f"a cluster file has at most {MAX_BYTES // 1024} KiB")
    for bom, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(bom):
            refuse(f"is {encoding}", "save it as UTF-8")
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


__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NODES", "Document", "read_document"]
