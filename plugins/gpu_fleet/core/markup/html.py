"""A report's document as one HTML page: no script, no other file, light or dark as the reader's system has it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape

from gpu_fleet.core.markup.blocks import Badge, Bars, Block, Fold, Heading, Inline, Items, Link, Note, Paragraph, Table
from gpu_fleet.core.markup.svg import svg

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --soft: #57606a; --line: #d5dae0; --head: #f3f5f7;
  --link: #0757ad; --ok: #0f6b34; --ok-bg: #dcf5e4; --bad: #a3161b; --bad-bg: #fde3e3; --mid: #7a4b00;
  --mid-bg: #fdf0cf; --off: #4c545d; --off-bg: #e9ecef; --s1: #d7e3f4; --s2: #f7dcb8; --s3: #bfe3cf; --s4: #e3d3f0;
  --s5: #f6cfd3; --s6: #c8e6ec; --s7: #e6e6c3; }
@media (prefers-color-scheme: dark) { :root { --bg: #14181d; --fg: #e4e8ec; --soft: #a2abb5; --line: #343c45;
  --head: #1e242b; --link: #7cb8ff; --ok: #7fe0a0; --ok-bg: #12371f; --bad: #ffb0ae; --bad-bg: #4b1719;
  --mid: #f5d080; --mid-bg: #443108; --off: #c2cad2; --off-bg: #2c343c; --s1: #26405f; --s2: #5a3d12; --s3: #1b4d33;
  --s4: #47305c; --s5: #5c2a30; --s6: #1d4a54; --s7: #4a4a1c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line); } h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 70rem; overflow-wrap: anywhere; } .lead { font-size: 1.1rem; font-weight: 600; }
a { color: var(--link); } a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 3px solid var(--link); outline-offset: 2px; }
code { font: .87em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
td code, th code { white-space: nowrap; }
.badge { display: inline-block; padding: .05rem .5rem; border-radius: .7rem; font-size: .8rem; font-weight: 600;
  white-space: nowrap; color: var(--off); background: var(--off-bg); vertical-align: .1em; }
.ok { color: var(--ok); background: var(--ok-bg); } .bad { color: var(--bad); background: var(--bad-bg); }
.mid { color: var(--mid); background: var(--mid-bg); }
.scroll { overflow-x: auto; margin: .4rem 0 1.2rem; }
table { border-collapse: collapse; min-width: 30rem; font-size: .9rem; }
caption { text-align: left; color: var(--soft); padding: 0 0 .3rem; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
thead th { background: var(--head); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.long { min-width: 20rem; }
.note { border-left: 4px solid var(--mid); background: var(--mid-bg); padding: .5rem .8rem; margin: .8rem 0;
  max-width: 70rem; }
.bars { display: block; width: 100%; max-width: 70rem; min-width: 40rem; height: auto; margin: .4rem 0; }
.bars text { fill: var(--fg); font-size: 13px; } .bars .label { text-anchor: end; } .bars .in { text-anchor: middle;
  font-size: 12px; font-weight: 600; } .bars .tick { text-anchor: middle; fill: var(--soft); font-size: 12px; }
.bars .axis { stroke: var(--line); } .bars rect { stroke: var(--soft); stroke-width: .7; }
.bars .hatch { stroke: var(--soft); stroke-width: 1.2; opacity: .55; }
.bars .unknown { fill: none; stroke: var(--fg); stroke-dasharray: 3 2; }
.bars .s1 { fill: var(--s1); } .bars .s2 { fill: var(--s2); } .bars .s3 { fill: var(--s3); } .bars .s4 {
  fill: var(--s4); } .bars .s5 { fill: var(--s5); } .bars .s6 { fill: var(--s6); } .bars .s7 { fill: var(--s7); }
details { margin: .6rem 0 1rem; } summary { cursor: pointer; color: var(--link); padding: .2rem 0; }
nav { color: var(--soft); font-size: .9rem; margin-bottom: 1rem; } nav a { margin-right: 1rem; }
@media print { details > *:not(summary) { display: block; } .scroll { overflow: visible; } }
"""

#: For the Content-Security-Policy of the server of the page: only this style may act on it.
STYLE_SOURCE = "'sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode() + "'"

_TONES = {
    "ok": ("Passed", "Ready"),
    "bad": ("Failed", "NotReady", "NotValidated", "Drifted"),
    "mid": ("Inconclusive", "Busy"),
}


def badge(text: str) -> str:
    """An outcome in a coloured pill; the words say it, too."""
    word = text.rpartition(" ")[2].partition(":")[0]
    tone = next((tone for tone, words in _TONES.items() if word in words), "off")
    return f'<span class="badge {tone}">{escape(text)}</span>'


def inline(part: Inline) -> str:
    match part:
        case Link(text, href):
            return f'<a href="{escape(href)}">{escape(text)}</a>'
        case Badge(text):
            return badge(text)
    return f"<code>{escape(part.text)}</code>" if part.code and part.text else escape(part.text)


def _parts(parts: Iterable[Inline]) -> str:
    return "".join(inline(part) for part in parts)


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_number(column, table)}>{escape(name)}</th>' for column, name in enumerate(table.head)
    )
    rows = "\n".join(f"<tr>{_cells(row, table)}</tr>" for row in table.rows)
    # The region can be scrolled with the keyboard where a narrow screen cuts the table.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}"><table>'
        f"<caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _cells(row: Sequence[Inline], table: Table) -> str:
    first = f'<th scope="row">{inline(row[0])}</th>' if row else ""
    rest = "".join(
        f"<td{_number(column, table) or _long(cell)}>{inline(cell)}</td>"
        for column, cell in enumerate(row[1:], start=1)
    )
    return first + rest


def _long(cell: Inline) -> str:
    """A sentence keeps some width on a narrow screen; the table can be scrolled."""
    return ' class="long"' if len(cell.text) > 60 else ""


def _number(column: int, table: Table) -> str:
    return ' class="number"' if column in table.numeric else ""


def _block(block: Block) -> str:
    match block:
        case Heading(level, text, mark):
            return f"<h{level}>{escape(text)}{' ' + badge(mark) if mark else ''}</h{level}>"
        case Paragraph(parts, lead):
            return f"<p{' class=lead' if lead else ''}>{_parts(parts)}</p>"
        case Note(text):
            return f'<p class="note" role="note">{escape(text)}</p>'
        case Items(items):
            return "<ul>" + "".join(f"<li>{_parts(item)}</li>" for item in items) + "</ul>"
        case Table():
            return _table(block)
        case Bars(_, title):
            return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(title)}">{svg(block)}</div>'
        case Fold(summary, blocks):
            inner = "\n".join(_block(each) for each in blocks)
            return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>"


def render(blocks: Iterable[Block], title: str, links: Iterable[Link] = ()) -> str:
    """The document as one page.

    :param links: to other forms of the same report; none for a page that is kept as a file.
    """
    navigation = "".join(inline(link) for link in links)
    body = "\n".join(_block(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + (f'<nav aria-label="Other formats">{navigation}</nav>\n' if navigation else "")
        + f"{body}\n</main>\n</body>\n</html>\n"
    )
