"""`make setup` on machines where it cannot go well at once; a script stands in for Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: ``-m venv`` makes a folder whose python is this script again. pip works there and reaches no network.
PYTHON = """#!/bin/sh
echo "$@" >> {calls}
for last; do :; done
case "$*" in
  "-m venv"*) mkdir -p "$last/bin" && touch "$last/pyvenv.cfg" && cp "$0" "$last/bin/python";;
  "-m pip --version") exit 0;;
  *) exit 1;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    (tmp_path / "python").write_text(PYTHON.format(calls=tmp_path / "calls"))
    (tmp_path / "python").chmod(0o755)
    return tmp_path / "calls"


def setup(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "setup", f"PYTHON={tmp_path / 'python'}", f"VENV={tmp_path / 'venv'}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_without_a_network_it_says_so(tmp_path: Path, calls: Path) -> None:
    for _ in range(2):
        done = setup(tmp_path)
        assert done.returncode != 0
        assert "is there a network" in done.stdout
    made = [line for line in calls.read_text().splitlines() if line.startswith("-m venv")]
    assert made == [f"-m venv {tmp_path / 'venv'}"], "what works is made once"
    assert not (tmp_path / "venv" / ".installed").exists()


@pytest.mark.parametrize("begun", ["a python without pip", "a folder"])
def test_an_environment_that_was_interrupted_is_made_anew(tmp_path: Path, calls: Path, begun: str) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    if begun != "a folder":
        (venv / "pyvenv.cfg").touch()
        (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
        (venv / "bin" / "python").chmod(0o755)
    setup(tmp_path)
    # Only what is an environment is emptied: VENV may name any folder.
    assert f"-m venv {venv}" == calls.read_text().splitlines()[0].replace("--clear ", "")
    assert ("--clear" in calls.read_text()) is (begun != "a folder")
