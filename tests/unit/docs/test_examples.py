"""What the documentation shows as a cluster file, or a part of one, is accepted; what it shows as Python is Python."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import yaml

from gpu_fleet.core.spec import ClusterSpec, parse_cluster
from tests.unit.core.specs import demo_spec
from tests.unit.docs.pages import PAGES, blocks, name

FIELDS = {info.alias or field for field, info in ClusterSpec.model_fields.items()}
REQUIRED = {info.alias or field for field, info in ClusterSpec.model_fields.items() if info.is_required()}


def examples() -> list[Any]:
    """Every YAML block that has nothing but fields of a cluster file at its top."""
    found = []
    for path in PAGES:
        for number, block in enumerate(blocks(path.read_text(encoding="utf-8"), "yaml")):
            value = yaml.safe_load(block)
            if isinstance(value, dict) and set(value) <= FIELDS:
                found.append(pytest.param(value, id=f"{name(path)}-{number}"))
    return found


@pytest.mark.parametrize("example", examples())
def test_an_example_of_a_cluster_file_is_accepted(example: dict[str, Any]) -> None:
    if set(example) >= REQUIRED:
        parse_cluster(example)
    else:
        demo_spec(**example)


def test_examples_are_found_at_all() -> None:
    complete = [each for each in examples() if set(each.values[0]) >= REQUIRED]
    assert len(complete) >= 2
    assert len(examples()) > 6


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_can_be_parsed(path: Any) -> None:
    for block in blocks(path.read_text(encoding="utf-8"), "python"):
        ast.parse(block if not block.rstrip().endswith(":") else f"{block.rstrip()} ...")
