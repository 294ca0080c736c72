"""What an earlier process left up is stopped, and nothing else is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.run import still_running
from demo.saved import stop_saved
from demo.stack import Stack


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, as the stack's are."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as found:
        yield found
        found.kill()


def saved(build_dir: Path, process: subprocess.Popen[bytes]) -> Path:
    stack = Stack(build_dir=build_dir, speed=1.0, airflow_process=process)
    stack._save()
    return build_dir / "stack.json"


def test_the_process_that_was_saved_is_stopped(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    path = saved(tmp_path, process)
    assert (json.loads(path.read_text())["airflow_pid"], path.stat().st_mode & 0o777) == (process.pid, 0o600)
    assert still_running(tmp_path)
    assert stop_saved(tmp_path)
    assert process.wait(timeout=5) != 0
    assert not path.exists()
    assert not still_running(tmp_path)


@pytest.mark.parametrize("then", ["4d9f 17", None], ids=["after a reboot", "unknown"])
def test_another_process_of_that_number_is_left_alone(
    tmp_path: Path, process: subprocess.Popen[bytes], then: str | None
) -> None:
    path = saved(tmp_path, process)
    path.write_text(json.dumps({**json.loads(path.read_text()), "airflow_started": then}))
    assert not still_running(tmp_path)
    assert not stop_saved(tmp_path)
    assert process.poll() is None
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", None])
def test_a_file_that_tells_nothing_stops_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "stack.json").write_text(text)
    assert not still_running(tmp_path)
    assert not stop_saved(tmp_path)


def test_the_components_of_the_stack_share_what_runs_under_way_were_pinned_to(
    tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str] = {}

    def spawn(self: Stack, command: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
        given.update(env)
        return process

    monkeypatch.setattr(Stack, "_spawn", spawn)
    monkeypatch.setattr(Stack, "_wait_for_sandbox", lambda self: None)
    monkeypatch.setattr(Stack, "_sandbox_environment", lambda self: {})
    stack = Stack(build_dir=tmp_path, speed=1.0)
    stack._start_airflow()
    assert given["GPU_FLEET_STATE_DIR"] == str(stack.airflow_home / "gpu_fleet")
