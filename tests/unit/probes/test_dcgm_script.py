"""The DCGM script, run by the machine's real ``sh`` with a fake host engine and a ``dcgmi`` that prints real tables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.probes.dcgm import Diagnosis, parse_dcgm
from tests.unit.core.specs import REPOSITORY

SCRIPT = REPOSITORY / "include" / "probes" / "dcgm.sh"
TOOLS = ("date", "sleep", "tr", "cut", "cat", "head", "awk", "sh")

#: As DCGM 3 and 4 print it (NVIDIA DCGM user guide, 'DCGM Diagnostics').
PASSED = """\
Successfully ran diagnostic for group.
+---------------------------+------------------------------------------------+
| Diagnostic                | Result                                         |
+===========================+================================================+
|-----  Metadata  ----------+------------------------------------------------|
| DCGM Version              | 4.2.3                                          |
| Driver Version Detected   | 570.133.20                                     |
|-----  Deployment  --------+------------------------------------------------|
| software                  | Pass                                           |
|                           | GPU0: Pass                                     |
| Persistence Mode          | Warn - GPU: 0                                  |
+-----  Integration  -------+------------------------------------------------+
| pcie                      | Pass - All                                     |
| nvlink                    | Skip - All                                     |
+---------------------------+------------------------------------------------+
"""
FAILED = PASSED.replace(
    "| pcie                      | Pass - All                                     |",
    "| pcie                      | Fail                                           |\n"
    '| Warning: GPU0             | Bandwidth of "1.2" GB/s is below 10 GB/s       |',
)


class Container:
    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.log = root, root / "bin", root / "termination-log"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is missing"))
        self.program("nvidia-smi", "echo 570.133.20")
        self.program("nv-hostengine", ': >"$TMPDIR/up"')
        self.dcgmi(PASSED)

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def dcgmi(self, table: str, status: int = 0) -> None:
        (self.root / "table").write_text(table)
        self.program(
            "dcgmi",
            f'[ -e "$TMPDIR/up" ] || exit 245\n[ "$1" = discovery ] && exit 0\n'
            f'echo "$*" >"$TMPDIR/arguments"\ncat {self.root}/table\nexit {status}',
        )

    def run(self, level: str = "2") -> tuple[int, Diagnosis]:
        text = SCRIPT.read_text().replace("/dev/termination-log", str(self.log))
        done = subprocess.run(
            ["sh", "-c", text, "dcgm", level],
            env={"PATH": str(self.bin), "TMPDIR": str(self.root)},
            timeout=60,
            check=False,
        )
        return done.returncode, parse_dcgm(self.log.read_text())


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_what_passed_is_listed_by_result(container: Container) -> None:
    status, found = container.run()
    assert status == 0
    assert (found.passed, found.failed, found.warned, found.skipped) == (
        ("software", "pcie"),
        (),
        ("Persistence Mode",),
        ("nvlink",),
    )
    assert (found.level, found.driver, found.error) == (2, "570.133.20", None)
    assert (container.root / "arguments").read_text().split() == ["diag", "-r", "2"]


def test_a_failed_test_is_named_with_what_dcgm_says_of_it(container: Container) -> None:
    container.dcgmi(FAILED, status=226)
    status, found = container.run()
    assert status == 0, "the diagnostic ran: what it found is in the report"
    assert found.failed == ("pcie",)
    assert "is below 10 GB/s" in found.detail


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"name": "nvidia-smi", "body": "exit 9"}, 1, "NvidiaSmiFailed"),
        ({"name": "nv-hostengine", "body": "echo port in use; exit 1"}, 2, "NoHostEngine"),
        ({"name": "dcgmi", "body": '[ "$1" = discovery ] || echo "no GPUs" >&2'}, 2, "DiagnosticFailed"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_named(container: Container, change: dict[str, Any], status: int, reason: str) -> None:
    container.program(**change)
    code, found = container.run()
    assert (code, found.error.reason if found.error else None) == (status, reason)


def test_a_wrong_level_and_a_missing_program(container: Container) -> None:
    code, found = container.run("9")
    assert (code, found.error.reason if found.error else "") == (2, "ProbeBroken")
    (container.bin / "dcgmi").unlink()
    code, found = container.run()
    assert (code, found.error.reason if found.error else "") == (2, "NoDcgm")
