"""Tools on the worker; what concerns AWS is in tests/unit/hooks/test_eks.py, beside the cloud it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import ToolError
from gpu_fleet.core.spec import parse_cluster
from gpu_fleet.hooks.fleet import load_cluster
from gpu_fleet.operators.preflight import CheckToolsOperator, gpus_of
from tests.unit.airflow_context import TaskInstance, context


def check(**changes: Any) -> Any:
    value = {**load_cluster("demo").to_json(), **changes}
    return CheckToolsOperator(task_id="check_tools").execute(context(TaskInstance(spec=parse_cluster(value))))


def helm_that_says(tmp_path: Path, text: str) -> str:
    path = tmp_path / "helm"
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return str(path)


def test_a_supported_helm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BIN", helm_that_says(tmp_path, "v4.2.3"))
    assert "4.2.3" in check()["helm"]


@pytest.mark.parametrize("text", ["v2.17.0", "v3.9.0", "", "not helm at all"])
def test_another_helm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HELM_BIN", helm_that_says(tmp_path, text))
    with pytest.raises(ToolError, match="HELM_BIN"):
        check()


def test_a_missing_helm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BIN", str(tmp_path / "nope"))
    with pytest.raises(ToolError, match="nope"):
        check()


def test_without_managed_releases_helm_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BIN", str(tmp_path / "nope"))
    value = load_cluster("demo").to_json()
    found = check(
        karpenter={**value["karpenter"], "manage": False}, devicePlugin={**value["devicePlugin"], "manage": False}
    )
    assert found == {"helm": None}


def test_gpus_of_a_type_without_any() -> None:
    assert gpus_of({"InstanceType": "m5.large"}) == {"gpus": 0, "gpu_name": "", "memory_mib": None}
