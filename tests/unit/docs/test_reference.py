"""The generated reference, and what other pages name of the package: reasons, tasks, environment variables."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.unit.docs.pages import ROOT
from tools.reference import environment, markup, permissions
from tools.reference.commands import document as commands
from tools.reference.operators import PUBLIC, classes

SYMPTOMS = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
#: Reasons that are put together at run time, from a prefix and the kubelet's word.
COMPOSED = re.compile(r"DevicePlugin\w+")
#: Of Karpenter and EC2, passed on as they come.
PASSED_ON = {"SubnetsNotFound"}


@cache
def texts() -> frozenset[str]:
    """Every text in the package's sources."""
    found: set[str] = set()
    for path in (ROOT / "plugins").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found.update(
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        found.update(node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return frozenset(found)


def reasons_of(page: str) -> list[str]:
    """The words in CamelCase in the first column of a page's tables."""
    rows = re.findall(r"^\| (.+?) \|", page, re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([A-Z]\w+)`", row) if re.search(r"[a-z][A-Z]", word)]


@pytest.mark.parametrize("reason", sorted(set(reasons_of(SYMPTOMS))))
def test_a_reason_among_the_symptoms_is_one_of_the_package(reason: str) -> None:
    assert reason in texts() | PASSED_ON or COMPOSED.fullmatch(reason)


def test_reasons_are_found_at_all() -> None:
    assert len(set(reasons_of(SYMPTOMS))) > 60


def test_every_variable_of_the_sources_is_described() -> None:
    described = {name for each in (*environment.PACKAGE, *environment.REPOSITORY) for name in each.name.split(", ")}
    named = environment.named_in_sources()
    assert "GPU_FLEET_STATE_DIR" in named
    assert named - described == set()
    assert {name for name in described if name.startswith("GPU_FLEET_")} - named == set(), "read by nobody any more"


def test_every_call_of_aws_is_granted() -> None:
    permissions.document()  # raises
    called, _ = permissions.operations()
    assert {"describe_cluster", "describe_instances", "terminate_instances"} <= called


def test_public_operators_are_found_with_every_argument_described() -> None:
    found = dict(classes())
    assert set(PUBLIC) <= set(found)
    assert found["HelmReleaseOperator"].about.of("param")[0][0]


def test_exit_codes_are_read_from_the_docstring() -> None:
    page = commands()
    assert "| `python -m gpu_fleet` | 0 |" in page
    assert "| `python -m gpu_fleet` | 2 |" in page


def test_a_docstring_is_taken_apart() -> None:
    about = "What ``it`` does.\n\n:param a: one;\n    two. :param b: three.\n:returns: :class:`~x.y.Z`."
    text = f"def f():\n    {about!r}"
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    found = markup.docstring(node)
    assert found.text == "What `it` does."
    assert found.fields[0][:2] == ("param", "a")
    assert found.of("param")[1] == ("b", "three.")
    assert found.of("returns") == [("", "`Z`.")]


def test_a_heading_between_two_arguments_belongs_to_neither() -> None:
    parts = (
        "What it does.",
        "*First*",
        ":param a: one.",
        "*Second*: also ``c``.",
        ":param b: two.",
        "*Third*",
        ":returns: x.",
    )
    about = "\n\n".join(parts)
    node = ast.parse(f"def f():\n    {about!r}").body[0]
    assert isinstance(node, ast.FunctionDef)
    found = markup.docstring(node)
    assert found.of("param") == [("a", "one."), ("b", "two.")]
    assert found.headings == {"b": "*Second*: also `c`.", "": "*Third*"}


def test_cells_of_a_table_stay_in_their_row() -> None:
    assert markup.table(("a", "b"), [("x | y", "two\nlines")]).splitlines()[-1] == "| x \\| y | two lines |"
