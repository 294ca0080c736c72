from __future__ import annotations

import ast
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


#: What a task imports only if its cluster file names a kubeconfig, which no deployment allows by default.
RARELY_NEEDED = {"gpu_fleet.hooks.kubernetes.kubeconfig"}
#: What only a triggerer imports, once: the trigger of interruptions, which no task runs.
OF_TRIGGERERS = {
    "gpu_fleet.hooks.kubernetes.aio",
    "gpu_fleet.hooks.kubernetes.first_aid",
    "gpu_fleet.triggers.first_aid",
    "gpu_fleet.triggers.queue_stream",
}


def imported_by_functions(folder: Path) -> set[str]:
    """The modules of the package that functions of a folder's modules import."""
    return {
        statement.module or ""
        for path in folder.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for statement in ast.walk(function)
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("gpu_fleet.")
    }


def test_what_tasks_import_when_they_act_is_preloaded_too() -> None:
    """A DAG processor does not load it, and no task should: it would cost each task what parsing saves."""
    wanted = {
        name
        for layer in ("hooks", "operators", "sensors", "triggers")
        for name in imported_by_functions(ROOT / "plugins" / "gpu_fleet" / layer)
    }
    assert {"gpu_fleet.core.validation.judge", "gpu_fleet.core.teardown.plan"} <= wanted
    code = """
import sys
from gpu_fleet.hooks import preload
assert preload.preload(preload.MODULES["scheduler"]) == []
print("@@@", *sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "@@@" in done.stdout, done.stderr[-2000:]
    loaded = set(done.stdout.split("@@@", 1)[1].split())
    assert sorted(wanted - loaded - RARELY_NEEDED - OF_TRIGGERERS) == []


#: What only tasks need, although operators that the DAG files use need it: the decisions, and what looks for them.
ONLY_TASKS_NEED = (
    "gpu_fleet.core.capacity.launch",
    "gpu_fleet.core.device_plugin.detect",
    "gpu_fleet.core.device_plugin.neighbours",
    "gpu_fleet.core.drift",
    "gpu_fleet.core.gates.plugin_proof",
    "gpu_fleet.core.gates.registry",
    "gpu_fleet.core.nodes.planned",
    "gpu_fleet.core.preflight.facts",
    "gpu_fleet.core.probes.pods",
    "gpu_fleet.core.releases.components",
    "gpu_fleet.core.releases.decide",
    "gpu_fleet.core.releases.state",
    "gpu_fleet.core.spec.notes",
    "gpu_fleet.core.teardown.emergency",
    "gpu_fleet.core.teardown.keeps",
    "gpu_fleet.core.teardown.leaks",
    "gpu_fleet.core.teardown.markdown",
    "gpu_fleet.core.teardown.plan",
    "gpu_fleet.core.validation.evidence",
    "gpu_fleet.core.validation.facts",
    "gpu_fleet.core.validation.judge",
    "gpu_fleet.hooks.aws",
    "gpu_fleet.hooks.cluster",
    "gpu_fleet.hooks.helm",
    "gpu_fleet.hooks.kubernetes.hook",
    "gpu_fleet.operators.preflight.look",
    "gpu_fleet.operators.validation.verdicts",
    "gpu_fleet.triggers.gate",
)


def test_parsing_a_dag_file_imports_nothing_that_only_its_tasks_need() -> None:
    """The DAG processor parses each file anew in a process of its own: each import is paid for at each parse.

    ``python bench/parse.py --against CHECKOUT`` measures it.
    """
    files = sorted(path.name for path in (ROOT / "dags").glob("gpu_*.py"))
    assert "gpu_lifecycle.py" in files
    code = f"""
import runpy, sys
for file in {files!r}:
    runpy.run_path({str(ROOT / "dags")!r} + "/" + file)
print("@@@", *sorted(name for name in sys.modules if name.startswith("gpu_fleet")))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "@@@" in done.stdout, done.stderr[-2000:]
    loaded = set(done.stdout.split("@@@", 1)[1].split())
    assert "gpu_fleet.operators.validation.probes" in loaded
    known = {module_of(path) for path in (ROOT / "plugins" / "gpu_fleet").rglob("*.py")}
    assert set(ONLY_TASKS_NEED) <= known  # a module that was renamed would be forbidden in vain
    assert sorted(loaded & set(ONLY_TASKS_NEED)) == []


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "plugins").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_a_module_that_is_missing_does_not_stop_the_component() -> None:
    assert preload.preload(("json", "no_such_module_anywhere")) == ["no_such_module_anywhere"]


def test_the_handlers_of_asset_uris_are_loaded_before_the_fork() -> None:
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    preload.preload(())
    assert "_asset_uri_handlers" in vars(ProvidersManagerTaskRuntime())
    assert "s3" in ProvidersManagerTaskRuntime()._asset_uri_handlers
    assert "airflow.providers.amazon.aws.assets.s3" in sys.modules
