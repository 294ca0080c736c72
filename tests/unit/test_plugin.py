"""Airflow's plugin loader on this repository's plugins folder, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gpu_fleet.hooks.files.templates import include_dir

PLUGINS = include_dir().parent / "plugins"

PROBE = """
import json, sys
from pathlib import Path
from airflow import plugins_manager
plugins, errors = plugins_manager._get_plugins()
inside = sorted(
    name for name, module in sys.modules.items()
    if getattr(module, "__file__", None) and Path(module.__file__).is_relative_to(sys.argv[1])
)
import kubernetes, types
print(json.dumps({
    "plugins": sorted({plugin.name for plugin in plugins}),
    "errors": errors,
    "inside": inside,
    "kubernetes": kubernetes.__file__,
    "types": types.__file__,
}))
"""


def test_the_loader_registers_the_plugin_and_shadows_no_module(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PLUGINS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, str(PLUGINS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == {}
    assert "gpu_fleet" in found["plugins"]
    assert not Path(found["kubernetes"]).is_relative_to(PLUGINS)
    assert not Path(found["types"]).is_relative_to(PLUGINS)
    assert "gpu_fleet.ui.lazy" in found["inside"]
    assert "gpu_fleet.ui.app" not in found["inside"], "every component would pay for the web application"
    assert all(name == "gpu_fleet_plugin" or name.split(".")[0] == "gpu_fleet" for name in found["inside"])


def test_tests_leave_the_airflow_of_whoever_runs_them_alone() -> None:
    from airflow.configuration import AIRFLOW_HOME

    assert Path(AIRFLOW_HOME) == Path(__file__).resolve().parents[2] / "build" / "tests" / "airflow"
