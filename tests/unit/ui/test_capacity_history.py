"""``python -m gpu_fleet capacity-history`` on an Airflow database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # imports Airflow's models in processes of their own

ROOT = Path(__file__).resolve().parents[3]


def run(home: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.unit.ui.history", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout.partition("@@@\n")[2], done.stderr


def test_a_table_for_each_pool_of_this_cluster(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "capacity-history", "demo")
    assert code == 0, err
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("Pool ")] == [
        "Pool shared-a10g: 31 node(s), the newest 20 are listed",
        "Pool whole-a100: 1 node(s)",
    ]
    rows = [line.split() for line in lines]
    assert rows[1] == [
        *("node", "type", "capacity", "created", "(UTC)"),
        *("request", "launch", "join", "ready", "plugin", "proof", "use", "total"),
    ]
    newest = rows[2]
    assert newest[:3] == ["ip-10-0-0-40", "g5.xlarge", "spot"]
    assert newest[5:] == ["3", "2", "100", "65", "30", "-", "-", "-"]
    assert ["p50", "g5.xlarge", "31", "3", "2", "100", "5", "30", "30", "230", "170"] in rows
    assert ["p95", "p4d.24xlarge", "1", "3", "2", "100", "5", "30", "30", "230", "170"] in rows


def test_json_has_every_node_and_percentile(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "capacity-history", "demo-2", "--json")
    assert code == 0, err
    value = json.loads(out)
    assert (value["cluster"], list(value["pools"])) == ("demo-2", ["shared-a10g"])
    pool = value["pools"]["shared-a10g"]
    assert len(pool["nodes"]) == 31
    assert pool["nodes"][-1]["seconds"]["ready"] == 65.0
    assert pool["nodes"][-1]["seconds"]["proof"] is None
    assert pool["percentiles"]["g5.xlarge"]["ready"] == {"samples": 31, "p50": 5.0, "p95": 5.0}


def test_a_cluster_of_which_nothing_is_recorded(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "capacity-history", "dem")
    assert (code, out) == (1, "")
    assert "nothing is recorded of cluster dem" in err


def test_a_database_that_cannot_be_read(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "--no-tables", "capacity-history", "demo")
    assert code == 2
    assert "error: Airflow's database cannot be read" in err
