"""The tasks from which a reader finds the report of a run."""

from __future__ import annotations

from typing import Any

import pytest

LINK = {"Report": "_link_ReportLink"}


def links(dag: dict[str, Any]) -> dict[str, Any]:
    tasks = (task["__var"] for task in dag["serialized"]["dag"]["tasks"])
    return {task["task_id"]: task.get("_operator_extra_links", {}) for task in tasks}


@pytest.mark.parametrize("family", ["gpu_lifecycle", "gpu_revalidate"])
def test_publication_and_verdict_link_to_the_report(fleet: dict[str, Any], family: str) -> None:
    found = links(fleet["dags"][f"{family}.demo"])
    assert found["run_verdict"] == LINK
    for pool in ("shared-a10g", "whole-a100"):
        assert found[f"validation.pool_{pool}.publish"] == LINK
