"""What the documentation tells people to run exists."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from gpu_fleet import __main__ as package
from tests.unit.docs.pages import PAGES, ROOT, blocks, name, spans

TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
#: Variables that the Makefile reads, as ``make demo KEEP=1`` sets them.
VARIABLES = set(re.findall(r"\$\((?:or |if |filter-out 0,)*\$?\(?([A-Z_]+)", (ROOT / "Makefile").read_text("utf-8")))


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each line of code that could be a command."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in blocks(text, "console", "sh", "bash") for line in block.splitlines()] + spans(text)
    for line in lines:
        try:
            words = shlex.split(line.replace("…", ""), comments=True)
        except ValueError:
            continue
        yield words


def after(words: list[str], *start: str) -> list[str] | None:
    """What follows ``start`` among the words, up to the next command of the line."""
    for index in range(len(words)):
        if tuple(words[index : index + len(start)]) == start:
            rest = words[index + len(start) :]
            end = next((at for at, word in enumerate(rest) if word in ("&&", "|", ";")), len(rest))
            return rest[:end]
    return None


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_make_targets_and_their_variables_exist(path: Path) -> None:
    for words in commands(path):
        if (rest := after(words, "make")) is not None:
            targets = [word for word in rest if "=" not in word]
            assert [word for word in targets if word not in TARGETS] == [], words
            assert [word for word in rest if "=" in word and word.partition("=")[0] not in VARIABLES] == [], words


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_of_the_package_exist_with_their_options(path: Path) -> None:
    for words in commands(path):
        python = next((word for word in words if re.fullmatch(r"(\S*/)?python3?", word)), None)
        if python is None or (rest := after(words, python, "-m", "gpu_fleet")) is None or not rest:
            continue
        known = subcommands()
        assert rest[0] in known, words
        options = {option for action in known[rest[0]]._actions for option in action.option_strings}
        given = [word.partition("=")[0] for word in rest[1:] if word.startswith("-")]
        assert [option for option in given if option not in options] == [], words


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_modules_and_scripts_that_are_run_exist(path: Path) -> None:
    for words in commands(path):
        for before, word in pairwise(words):
            if before == "-m" and re.match(r"(sandbox|bench|demo|tools|gpu_fleet)\b", word):
                there = [ROOT / word.replace(".", "/"), ROOT / "plugins" / word.replace(".", "/")]
                assert any((path / "__main__.py").exists() or path.with_suffix(".py").exists() for path in there), words
            if re.fullmatch(r"(\S*/)?python3?", before) and word.endswith(".py"):
                assert (ROOT / word).exists(), words


def subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = package._parser()._actions
    found = next(action for action in actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def test_commands_are_found_at_all() -> None:
    found = [words for path in PAGES for words in commands(path)]
    assert sum(after(words, "make") is not None for words in found) > 20
    assert sum(after(words, "python", "-m", "gpu_fleet") is not None for words in found) > 10
    assert {"demo", "lint", "docs"} <= TARGETS
    assert {"KEEP", "FAULT", "KUBECONFIG_FILE", "KILLS"} <= VARIABLES
