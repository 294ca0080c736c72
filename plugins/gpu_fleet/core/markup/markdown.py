"""A report's document as Markdown (GitHub's dialect: tables; folds are HTML's details, which it passes through)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpu_fleet.core.markup.blocks import Badge, Bars, Block, Fold, Heading, Inline, Items, Link, Note, Paragraph, Table

_LINE_BREAKS = re.compile(r"[\r\n\v\f\x85\u2028\u2029]+")
_SIGNIFICANT = re.compile(r"([\\`*_{}\[\]#|~$])")


def escape(text: str) -> str:
    """Text that means itself: no markup, no HTML, no table cell or line of its own."""
    safe = _LINE_BREAKS.sub(" ", text)
    safe = safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SIGNIFICANT.sub(r"\\\1", safe)


def code(text: str) -> str:
    """A code span; a backtick or a line break in it would end it, and a pipe the table's cell."""
    text = _LINE_BREAKS.sub(" ", text)
    return f"`{text.replace('`', chr(39)).replace('|', chr(166))}`" if text else ""


def inline(part: Inline) -> str:
    match part:
        case Link(text, href):
            return f"[{escape(text)}]({href.replace('(', '%28').replace(')', '%29')})"
        case Badge(text):
            return f"**{escape(text)}**"
    return code(part.text) if part.code else escape(part.text)


def _parts(parts: Iterable[Inline]) -> str:
    return "".join(inline(part) for part in parts)


def _table(table: Table) -> list[str]:
    ruler = ["---:" if column in table.numeric else "---" for column in range(len(table.head))]
    rows = ["| " + " | ".join(inline(cell) for cell in row) + " |" for row in table.rows]
    return [
        f"{escape(table.caption)}:",
        "",
        "| " + " | ".join(escape(head) for head in table.head) + " |",
        "|" + "|".join(ruler) + "|",
        *rows,
        "",
    ]


def _block(block: Block) -> list[str]:
    match block:
        case Heading(level, text, badge):
            return [f"{'#' * level} {escape(text)}{f': {escape(badge)}' if badge else ''}", ""]
        case Paragraph(parts, lead):
            return [f"**{_parts(parts)}**" if lead else _parts(parts), ""]
        case Note(text):
            return [f"> {escape(text)}", ""]
        case Items(items):
            return [*(f"- {_parts(item)}" for item in items), ""]
        case Table():
            return _table(block)
        case Bars():
            return [escape(block.description), ""]  # the table that follows has the figures
        case Fold(summary, blocks):
            inner = [line for each in blocks for line in _block(each)]
            return [f"<details><summary>{escape(summary)}</summary>", "", *inner, "</details>", ""]


def render(blocks: Iterable[Block]) -> str:
    """The document as Markdown, with a final line break."""
    return "\n".join(line for block in blocks for line in _block(block)).rstrip() + "\n"
