from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from gpu_fleet.core.spec.schema import schema_text
from tests.unit.core.specs import REPOSITORY, demo_mapping


def test_the_schema_file_is_current() -> None:
    written = (REPOSITORY / "include" / "schema" / "cluster.schema.json").read_text(encoding="utf-8")
    assert written == schema_text(), "run: python -m gpu_fleet schema --output include/schema/cluster.schema.json"


def test_the_schema_accepts_the_demo_cluster() -> None:
    jsonschema.validate(demo_mapping(), json.loads(schema_text()))


@pytest.mark.parametrize(
    "changes", [{"surprise": 1}, {"aws__region": ...}, {"nodePools__0__expireAfter": "1d"}, {"state": "gone"}]
)
def test_the_schema_refuses_what_an_editor_can_know(changes: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(demo_mapping(**changes), json.loads(schema_text()))
