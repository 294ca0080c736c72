"""The parts that a report's document is made of; each renderer turns them into its own language.

Texts are plain: a renderer escapes them. They come from clusters, pods and images, so none may be trusted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

#: Characters that XML 1.0 cannot hold, and terminal escapes.
_CONTROL = re.compile(
    "\x1b\\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
#: A message is a sentence; what is longer is in the log.
LONGEST = 2000


def clean(text: object) -> str:
    """The text in one line, without control characters, terminal escapes and overrides of the writing direction."""
    words = " ".join(_CONTROL.sub("", str(text)).split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}…"


def moment(seconds: float) -> str:
    """Epoch seconds for people, in UTC: ``2026-11-23 04:00:12``."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "?"


def instant(iso: str | None) -> str:
    """ISO 8601 for people: ``2026-11-23 04:00:12 UTC``; what is no such time is left as it is."""
    try:
        return moment(datetime.fromisoformat(str(iso)).timestamp()) + " UTC"
    except ValueError:
        return clean(iso or "–")


@dataclass(frozen=True)
class Text:
    """:ivar code: a name to be copied: a node, a reason, an id."""

    text: str
    code: bool = False


@dataclass(frozen=True)
class Link:
    """:ivar href: an address that the package has made, never one from a cluster."""

    text: str
    href: str


@dataclass(frozen=True)
class Badge:
    """An outcome or a state; said in words as well as in colour."""

    text: str


Inline = Text | Link | Badge


def text(value: object) -> Text:
    """Text of others; the package's own, which may begin or end with a space, is :class:`Text` itself."""
    return Text(clean(value))


def code(value: object) -> Text:
    return Text(clean(value), code=True)


@dataclass(frozen=True)
class Heading:
    """:ivar level: 1 to 3."""

    level: int
    text: str
    badge: str = ""


@dataclass(frozen=True)
class Paragraph:
    parts: tuple[Inline, ...]
    lead: bool = False


@dataclass(frozen=True)
class Note:
    """What a reader must know to understand the rest."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of paragraphs."""

    items: tuple[tuple[Inline, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table.

    :ivar caption: what it shows, also for screen readers.
    :ivar numeric: columns to be aligned to the right.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Inline, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Fold:
    """What is included for completeness, shown on demand where the medium allows it."""

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Segment:
    """:ivar number: 1 to 7, its place in the legend.
    :ivar seconds: ``None``: unknown.
    """

    number: int
    words: str
    seconds: float | None


@dataclass(frozen=True)
class Bar:
    label: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Bars:
    """A picture: durations side by side, each made of parts. A table with the same figures has to follow.

    :ivar name: unique on the page: letters, digits and hyphens.
    :ivar description: what the picture shows, for those who do not see it.
    :ivar legend: the parts' names in the order of their numbers.
    """

    name: str
    title: str
    description: str
    legend: tuple[str, ...]
    bars: tuple[Bar, ...]


Block = Heading | Paragraph | Note | Items | Table | Fold | Bars
