"""Every relative link of the documentation leads to a file, and every anchor to a heading."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.docs.pages import PAGES, ROOT, anchors, links, name


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    dead = []
    for target in links(path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there.read_text(encoding="utf-8"))):
            dead.append(target)
    assert dead == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    left = [ROOT / "README.md"]
    while left:
        path = left.pop()
        if path in reached or path.suffix != ".md" or not path.exists():
            continue
        reached.add(path)
        left += [(path.parent / target.partition("#")[0]).resolve() for target in links(path.read_text("utf-8"))]
    assert [name(path) for path in PAGES if path not in reached] == []


def test_headings_have_the_anchors_that_github_gives_them() -> None:
    text = "# A page\n\n## `mode`, and what it *does* …\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n"
    assert anchors(text) == {"a-page", "mode-and-what-it-does-", "twice", "twice-1"}


def test_the_glossary_is_in_the_order_of_the_alphabet() -> None:
    lines = (ROOT / "docs" / "concepts" / "glossary.md").read_text(encoding="utf-8").splitlines()
    terms = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
    assert terms == sorted(terms, key=str.lower)
    assert len(terms) > 30
