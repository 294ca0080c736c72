"""Whatever `validate` finds wrong, it says in words what to write instead."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import gpu_fleet.core.spec as package
from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec import SpecErrors
from gpu_fleet.core.spec.yaml.document import read_document
from tests.unit.core.specs import demo_spec

SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))


def text_of(node: ast.AST) -> str | None:
    """A literal text, or an f-string with its values left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "…" for part in node.values)
    return None


def sentences(tree: ast.AST) -> list[tuple[int, str]]:
    """What the validators raise, and what the explanations of a :class:`Pattern` return."""
    raised = [
        (node.lineno, text)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "ValueError"
        and node.args
        and (text := text_of(node.args[0]))
    ]
    explain = {
        argument.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Pattern"
        for argument in node.args
        if isinstance(argument, ast.Name)
    }
    returned = [
        (found.lineno, text)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in explain
        for found in ast.walk(node)
        if isinstance(found, ast.Return) and found.value is not None and (text := text_of(found.value))
    ]
    return raised + returned


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_sentence_of_a_validator_ends_with_its_remedy(path: Path) -> None:
    """``problems_of`` takes what follows the semicolon for it."""
    without = [
        f"{path.name}:{line}: {text}" for line, text in sentences(ast.parse(path.read_text())) if "; " not in text
    ]
    assert without == []


def test_the_sentences_are_found() -> None:
    assert sum(len(sentences(ast.parse(path.read_text()))) for path in SOURCES) > 40


#: One change for each kind of constraint in the models, and what the remedy has to say.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"nodePools__0__wantedNodes": -1}, "0 or more"),
    ({"nodePools__0__sharing__replicas": 49}, "at most 48"),
    ({"nodeClass__volumeSize": 1}, "30 or more"),
    ({"validation__throughput__minimumTotal": 0}, "more than 0"),
    ({"validation__throughput__tolerance": 1}, "less than 1"),
    ({"validation__throughput__tolerance": float("nan")}, "finite number"),
    ({"nodeClass__discoveryTag": ""}, "at least 1 character"),
    ({"nodeClass__discoveryTag": "x" * 257}, "at most 256 characters"),
    ({"nodeClass__tags": {f"key-{number}": "x" for number in range(43)}}, "at most 42"),
    ({"nodeClass__tags": {"": "x"}}, "write"),
    ({"nodeClass__tags": {"a": "x" * 257}}, "shorten"),
    ({"nodeClass__amiAlias": "ubuntu@v1"}, "al2023@v"),
    ({"name": "x" * 64}, "shorten"),
    ({"name": "Demo"}, "use lower-case"),
    ({"nodePools": []}, "at least one"),
    ({"owners": [""]}, "at least 1 character"),
    ({"schedule": 5}, "write text"),
    ({"state": "gone"}, "one of"),
    ({"nodePools__0__wantedNodes": 1.5}, "whole number"),
    ({"nodePools__0__sharing": {"replicas": 2}}, "mode"),
    ({"aws": None}, "mapping"),
    ({"aws": ...}, "add it"),
    ({"nope": 1}, "remove it"),
]


@pytest.mark.parametrize(
    ("change", "remedy"), WRONG, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_every_kind_of_constraint_has_a_remedy(change: dict[str, Any], remedy: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(**change)
    for problem in caught.value.problems:
        assert problem.remedy, problem.message
    assert any(remedy in problem.remedy for problem in caught.value.problems), caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: 1\na: 2",
        "a: &x [*x]",
        "a: !!python/x y",
        "a: yes",
        "a: 010",
        "a: .nan",
        "\tb: 1",
        "a: *b",
        "a: b: c",
    ],
)
def test_what_is_no_document_has_a_remedy(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_document(text.encode())
    assert caught.value.remedy
