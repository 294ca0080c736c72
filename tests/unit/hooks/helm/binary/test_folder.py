"""Private folders: removed by their maker, or after its death by the next one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_fleet.hooks.helm.binary.command import Helm
from gpu_fleet.hooks.helm.binary.folder import PrivateFolder

REPOSITORY = Path(__file__).resolve().parents[5]
HOLD = """
import sys, time
from gpu_fleet.hooks.helm.binary.folder import PrivateFolder
with PrivateFolder() as folder:
    (folder.path / "kubeconfig").write_text("a token")
    print(folder.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def other(place: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with a folder of its own."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "plugins"), "TMPDIR": str(place)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD], env=env, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_folder_is_private_and_goes_with_its_maker(place: Path) -> None:
    with PrivateFolder() as folder:
        assert folder.path is not None
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        (folder.path / "config").mkdir()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_one(other: tuple[subprocess.Popen[str], Path]) -> None:
    process, left = other
    process.kill()
    process.wait()
    assert (left / "kubeconfig").exists()
    with PrivateFolder():
        assert not left.exists()


def test_the_folder_of_a_living_process_stays(other: tuple[subprocess.Popen[str], Path]) -> None:
    with PrivateFolder(), PrivateFolder() as second:
        assert (other[1] / "kubeconfig").read_text() == "a token"
        assert second.path is not None
    assert other[1].exists()


@pytest.mark.parametrize("kind", ["link", "open to others", "somebody else's", "another program's"])
def test_what_is_not_a_private_folder_of_this_user_stays(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    found = place / ("gpu-fleet-else-x" if kind == "another program's" else "gpu-fleet-helm-x")
    if kind == "link":
        target = tmp_path_factory.mktemp("target")
        target.chmod(0o700)
        (target / "file").write_text("")
        found.symlink_to(target)
    else:
        found.mkdir(mode=0o755 if kind == "open to others" else 0o700)
        (found / "file").write_text("")
    if kind == "somebody else's":
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with PrivateFolder():
        pass
    assert (found / "file").exists()


def test_helms_own_temporary_files_are_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "helm"
    script.write_text("#!/bin/sh\necho $TMPDIR\n")
    script.chmod(0o755)
    monkeypatch.setenv("HELM_BIN", str(script))
    with Helm() as helm:
        assert helm.run(["x"], deadline_s=60, quiet=True).stdout.strip() == str(helm.folder)
