from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_fleet.__main__ import main
from gpu_fleet.core.spec.schema import schema_text
from gpu_fleet.hooks.files.dag_files import FAMILIES
from tests.unit.core.specs import DEMO_FILE, REPOSITORY

DEMO = DEMO_FILE.read_text(encoding="utf-8")


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    folder = tmp_path / "clusters"
    folder.mkdir()
    (folder / "demo.yaml").write_text(DEMO)
    return folder


def test_a_valid_fleet_passes(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(fleet)]) == 0
    assert "1 cluster files are valid: demo" in capsys.readouterr().out


def test_a_broken_fleet_fails_with_a_table(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fleet / "demo.yaml").write_text(
        DEMO.replace("replicas: 4", "replicas: 1").replace("consolidateAfter: 5m", "consolidateAfter: 1d")
    )
    (fleet / "empty.yaml").write_text("")
    assert main(["validate", str(fleet)]) == 1
    out, err = capsys.readouterr()
    rows = [line.split("  ")[0].strip() for line in out.splitlines()]
    assert rows == ["cluster", "-------", "demo", "demo", "empty"]
    for part in ("nodePools[0].sharing.replicas", "nodePools[0].disruption.consolidateAfter", "write 24h", "is empty"):
        assert part in out
    assert "3 problems in 2" in err


def test_a_vanished_cluster_needs_a_teardown_first(
    fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = tmp_path / "now"
    now.mkdir()
    (now / "other.yaml").write_text(DEMO.replace("name: demo\n", "name: other\n"))
    assert main(["validate", str(now), "--previous", str(fleet)]) == 1
    assert "gpu_teardown.demo" in capsys.readouterr().out
    (fleet / "demo.yaml").write_text(DEMO.replace("state: present", "state: absent"))
    assert main(["validate", str(now), "--previous", str(fleet)]) == 0
    assert main(["validate", str(fleet), "--previous", str(fleet)]) == 0


def test_unknown_prices_and_types_are_noted_but_pass(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fleet / "demo.yaml").write_text(DEMO.replace("[g5.xlarge]", "[g9.xlarge]"))
    assert main(["validate", str(fleet)]) == 0
    out = capsys.readouterr().out
    assert "no list price of g9.xlarge" in out
    assert "GPU count of g9.xlarge" in out


def test_notes_are_printed_and_fail_nothing(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fleet / "demo.yaml").write_text(DEMO.replace("    capacity: {hold: 0}\n", "    terminationGracePeriod: 48h\n"))
    assert main(["validate", str(fleet)]) == 0
    assert "note: demo: nodePools[0].terminationGracePeriod: 48h after a node" in capsys.readouterr().out


def test_what_a_deployment_would_have_to_allow_is_noted(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fleet / "demo.yaml").write_text(DEMO.replace("connection: aws_demo", "connection: payroll"))
    assert main(["validate", str(fleet)]) == 0
    out = capsys.readouterr().out
    assert "note: demo: aws.connection: this deployment does not let cluster files use the connection 'payroll'" in out
    assert "GPU_FLEET_ALLOWED_CONNECTIONS" in out


def test_pools_of_others_need_a_label_for_our_plugin_which_is_noted(
    fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = DEMO.replace("  - name: whole-a100\n", "  - name: whole-a100\n    manage: false\n")
    foreign = foreign.replace("uninstallKarpenter: true", "uninstallKarpenter: false")
    (fleet / "demo.yaml").write_text(foreign)
    assert main(["validate", str(fleet)]) == 0
    note = "our device plugin serves the nodes of pool whole-a100 only if their owner labels them gpu-fleet.io/"
    assert note in capsys.readouterr().out
    (fleet / "demo.yaml").write_text(foreign.replace("devicePlugin:\n  manage: true", "devicePlugin:\n  manage: false"))
    assert main(["validate", str(fleet)]) == 0
    assert note not in capsys.readouterr().out


def test_a_large_fleet_is_told_to_share_its_files(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = "  - {name: p-%d, instanceTypes: [g5.xlarge], wantedNodes: 1}\n"
    small = DEMO[: DEMO.index("nodePools:")] + "nodePools:\n" + pool % 0
    (fleet / "demo.yaml").write_text(small)
    assert main(["validate", str(fleet)]) == 0
    assert "note: the fleet" not in capsys.readouterr().out
    pools = "".join(pool % number for number in range(100))
    for number in range(9):
        text = small.replace("name: demo\n", f"name: c{number}\n").replace("demo-gpu", f"c{number}")
        (fleet / f"c{number}.yaml").write_text(text.replace(pool % 0, pools))
    assert main(["validate", str(fleet)]) == 0
    assert "note: the fleet: 10 clusters with 901 pools in one file per family" in capsys.readouterr().out


def test_more_pools_than_a_dag_can_bear_are_refused(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pools = "".join(f"  - {{name: p-{number}, instanceTypes: [g5.xlarge], wantedNodes: 1}}\n" for number in range(101))
    (fleet / "demo.yaml").write_text(DEMO[: DEMO.index("nodePools:")] + f"nodePools:\n{pools}")
    assert main(["validate", str(fleet)]) == 1
    out = capsys.readouterr().out
    assert "has 101 entries" in out
    assert "give at most 100" in out


def test_dag_files_are_shared_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for family in FAMILIES:
        (tmp_path / f"{family}.py").touch()
    assert main(["shards", "2", "--dags", str(tmp_path)]) == 0
    assert "+ gpu_lifecycle_2.py" in capsys.readouterr().out
    assert main(["shards", "0", "--dags", str(tmp_path)]) == 2
    assert main(["shards", "2", "--dags", str(tmp_path / "nope")]) == 2


def test_a_folder_that_is_not_there_or_empty_is_a_wrong_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(tmp_path / "nope")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["validate", str(tmp_path)]) == 2
    assert "no cluster files" in capsys.readouterr().err


def test_the_schema_can_be_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "ClusterSpec"
    assert main(["schema", "--output", str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_text() == schema_text()
    assert main(["schema", "--output", str(tmp_path / "no" / "s.json")]) == 2


def test_the_module_runs_without_airflow_in_the_way() -> None:
    code = (
        "import sys; sys.argv[1:] = ['validate']; import runpy\n"
        "try: runpy.run_module('gpu_fleet', run_name='__main__')\n"
        "except SystemExit as done: assert done.code == 0, done.code\n"
        "assert 'airflow' not in sys.modules and 'boto3' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "plugins")}
    environment.pop("GPU_FLEET_CLUSTERS_DIR", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)
