"""The lock file, as a fresh process reads it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from gpu_fleet.core.releases.charts.locks import Locked, charts_of, render_locks
from gpu_fleet.hooks.files.clusters import CLUSTERS_DIR_VARIABLE, load_cluster
from gpu_fleet.hooks.files.templates import include_dir
from gpu_fleet.hooks.helm.charts.locks import LOCK_FILE


def test_a_process_that_has_run_no_task_yet_applies_the_lock_file(tmp_path: Path) -> None:
    """`freeze_spec` may be a worker's first task, and the command line runs none: nothing has prepared the process."""
    folder = tmp_path / "clusters"
    shutil.copytree(include_dir() / "clusters", folder)
    digest = f"sha256:{'a' * 64}"
    locks = [Locked(item.repository, item.name, item.version, digest) for item in charts_of(load_cluster("demo"))]
    (tmp_path / LOCK_FILE).write_text(yaml.safe_dump(render_locks(locks)))
    code = (
        "from gpu_fleet.hooks.files.clusters import load_cluster\n"
        "from gpu_fleet.hooks.helm.charts.locks import apply_locks\n"
        "print(apply_locks(load_cluster('demo')).device_plugin.chart.digest)"
    )
    environment = {**os.environ, CLUSTERS_DIR_VARIABLE: str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest
