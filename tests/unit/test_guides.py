"""What the guides tell users to write is what the package takes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from gpu_fleet.hooks.notifiers import VARIABLES, check_notifiers
from tests.unit.core.specs import REPOSITORY, demo_spec

GUIDE = (REPOSITORY / "docs" / "guides" / "notifications.md").read_text(encoding="utf-8")
EXAMPLES: list[dict[str, Any]] = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)]


@pytest.mark.parametrize("example", EXAMPLES, ids=["sns", "smtp", "overdue"])
def test_the_notifications_of_the_guide_are_accepted(example: dict[str, Any]) -> None:
    spec = demo_spec(**example)
    check_notifiers([entry.model_dump(mode="json") for entry in spec.validation.notify])


def test_the_guide_lists_every_variable() -> None:
    assert {name for name in VARIABLES if f"`{name}`" in GUIDE} == set(VARIABLES)
