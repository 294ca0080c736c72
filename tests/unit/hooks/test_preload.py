from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.hooks import preload

ROOT = Path(__file__).resolve().parents[3]


class Job:
    """What a starting scheduler announces."""


class TaskRunnerMarker:
    """What a starting task announces."""


@pytest.mark.parametrize(
    ("component", "argv", "expected"),
    [
        (Job(), ["airflow", "scheduler"], preload.LIBRARIES + preload.PACKAGE),
        (Job(), ["airflow", "dag-processor"], preload.LIBRARIES),
        (Job(), ["airflow", "triggerer"], ()),
        (TaskRunnerMarker(), ["airflow", "scheduler"], ()),
        (Job(), ["airflow"], ()),
    ],
)
def test_only_components_that_fork_preload(component: Any, argv: list[str], expected: tuple[str, ...]) -> None:
    assert preload.modules_for(component, argv) == expected


def test_every_module_of_the_lists_exists() -> None:
    names = preload.MODULES["scheduler"]
    assert preload.preload(names) == []
    assert all(name in sys.modules for name in names)


def test_parsing_a_dag_file_imports_nothing_of_the_package_that_was_not_preloaded() -> None:
    """Each task parses its DAG file: what is missing in the list, every task of that file pays for."""
    code = f"""
import runpy, sys
from pathlib import Path
from gpu_fleet.hooks import preload
assert preload.preload(preload.MODULES["scheduler"]) == []
before = set(sys.modules)
for file in sorted(Path({str(ROOT / "dags")!r}).glob("*.py")):
    runpy.run_path(str(file))
print("@@@", *sorted(name for name in set(sys.modules) - before if name.startswith("gpu_fleet")))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "@@@" in done.stdout, done.stderr[-2000:]
    assert done.stdout.split("@@@", 1)[1].split() == []


def test_a_module_that_is_missing_does_not_stop_the_component() -> None:
    assert preload.preload(("json", "no_such_module_anywhere")) == ["no_such_module_anywhere"]


def test_the_handlers_of_asset_uris_are_loaded_before_the_fork() -> None:
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    preload.preload(())
    assert "_asset_uri_handlers" in vars(ProvidersManagerTaskRuntime())
    assert "s3" in ProvidersManagerTaskRuntime()._asset_uri_handlers
    assert "airflow.providers.amazon.aws.assets.s3" in sys.modules
