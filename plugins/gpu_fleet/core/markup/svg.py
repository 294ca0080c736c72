"""Bars as one inline SVG: no script, no style of its own, so that the page's Content-Security-Policy lets it be.

It is read without colour, too: every second stage is hatched, each has the number that the legend gives it where there
is room, and unknown ones are dashed boxes with a question mark. Screen readers get title and description; the same
figures are in the table that follows.
"""

from __future__ import annotations

from html import escape

from gpu_fleet.core.markup.blocks import Bar, Bars, Segment

WIDTH, LABELS, RIGHT = 960, 250, 70
ROW, BAR, TOP, LEGEND_ROW = 30, 20, 8, 22
#: Pixels of a segment whose seconds are unknown, and least pixels for the number in a segment.
UNKNOWN_WIDTH, NUMBER_WIDTH = 22, 13
#: Entries of the legend in one line.
_COLUMNS = 3
#: Characters of a label that fit beside its bar.
_LABEL = 34


def svg(bars: Bars) -> str:
    """The picture; empty without a bar."""
    if not bars.bars:
        return ""
    scale = _scale(bars)
    rows = "".join(_row(bars.name, bar, TOP + index * ROW, scale) for index, bar in enumerate(bars.bars))
    below = TOP + len(bars.bars) * ROW
    axis = _axis(scale, below)
    lines = -(-len(bars.legend) // _COLUMNS)
    height = below + 34 + lines * LEGEND_ROW
    return (
        f'<svg class="bars" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{bars.name}-t {bars.name}-d">'
        f'<title id="{bars.name}-t">{escape(bars.title)}</title>'
        f'<desc id="{bars.name}-d">{escape(bars.description)}</desc>'
        f'<defs><pattern id="{bars.name}-h" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><line class="hatch" x1="0" y1="0" x2="0" y2="6"/></pattern></defs>'
        f"{axis}{rows}{_legend(bars, below + 30)}</svg>"
    )


def _scale(bars: Bars) -> float:
    """Pixels of a second, so that the longest bar fits."""
    room = WIDTH - LABELS - RIGHT
    found = []
    for bar in bars.bars:
        unknown = sum(segment.seconds is None for segment in bar.segments)
        seconds = sum(segment.seconds or 0.0 for segment in bar.segments)
        if seconds:
            found.append((room - unknown * UNKNOWN_WIDTH) / seconds)
    return min(found, default=1.0)


def _row(name: str, bar: Bar, top: float, scale: float) -> str:
    label = bar.label if len(bar.label) <= _LABEL else f"{bar.label[: _LABEL - 1]}…"
    parts = [f'<text class="label" x="{LABELS - 8}" y="{top + 15}">{escape(label)}</text>']
    left = float(LABELS)
    for segment in bar.segments:
        width = UNKNOWN_WIDTH if segment.seconds is None else segment.seconds * scale
        parts.append(_segment(name, segment, left, top, width))
        left += width
    total = sum(segment.seconds or 0.0 for segment in bar.segments)
    more = "+" if any(segment.seconds is None for segment in bar.segments) else ""
    parts.append(f'<text x="{left + 6:.1f}" y="{top + 15}">{total:.0f} s{more}</text>')
    return "".join(parts)


def _segment(name: str, segment: Segment, left: float, top: float, width: float) -> str:
    unknown = segment.seconds is None
    said = f"{segment.words}: {'unknown' if unknown else f'{segment.seconds:.0f} s'}"
    place = f'x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}"'
    kind = "unknown" if unknown else f"s{segment.number}"
    hatch = f'<rect {place} fill="url(#{name}-h)"/>' if not unknown and segment.number % 2 == 0 else ""
    word = "?" if unknown else str(segment.number)
    fits = width >= NUMBER_WIDTH
    text = f'<text class="in" x="{left + width / 2:.1f}" y="{top + 14.5}">{word}</text>' if fits else ""
    return f'<g><title>{escape(said)}</title><rect class="{kind}" {place}/>{hatch}{text}</g>'


def _axis(scale: float, below: float) -> str:
    """Lines at round numbers of seconds."""
    longest = (WIDTH - LABELS - RIGHT) / scale
    step = next((each for each in _STEPS if longest / each <= 6), _STEPS[-1])
    lines = []
    for index in range(int(longest // step) + 1):
        x = LABELS + index * step * scale
        lines.append(f'<line class="axis" x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{below}"/>')
        lines.append(f'<text class="tick" x="{x:.1f}" y="{below + 13}">{index * step:g} s</text>')
    return "".join(lines)


_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)


def _key(name: str, number: int, left: float, top: float) -> str:
    place = f'x="{left:.1f}" y="{top}" width="20" height="{BAR}"'
    hatch = f'<rect {place} fill="url(#{name}-h)"/>' if number % 2 == 0 else ""
    text = f'<text class="in" x="{left + 10:.1f}" y="{top + 14.5}">{number}</text>'
    return f'<rect class="s{number}" {place}/>{hatch}{text}'


def _legend(bars: Bars, top: float) -> str:
    parts = []
    for index, words in enumerate(bars.legend):
        left = 10 + (index % _COLUMNS) * ((WIDTH - 20) / _COLUMNS)
        down = top + (index // _COLUMNS) * LEGEND_ROW
        parts.append(_key(bars.name, index + 1, left, down))
        parts.append(f'<text x="{left + 27:.1f}" y="{down + 15}">{escape(words)}</text>')
    return "".join(parts)
