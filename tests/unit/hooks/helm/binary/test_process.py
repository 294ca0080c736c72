"""A child process: its output, its end, and that it never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu_fleet.hooks.helm.binary.process import Finished, run_child

REPOSITORY = Path(__file__).resolve().parents[5]
ENV = {"PATH": os.environ["PATH"]}


def run(tmp_path: Path, code: str, **options: object) -> Finished:
    fields: dict[str, object] = {"deadline_s": 60.0, **options}
    return run_child([sys.executable, "-c", code], env=ENV, folder=tmp_path, **fields)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int) -> None:
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def test_output_is_handed_over_line_by_line_without_tokens(tmp_path: Path) -> None:
    lines: list[str] = []
    code = (
        "import sys; print('out'); print('k8s-aws-v1.c2VjcmV0', file=sys.stderr); sys.stderr.write('rest'); sys.exit(3)"
    )
    done = run(tmp_path, code, sink=lines.append)
    assert done.code == 3
    assert not done.ok
    assert done.stdout == "out\n"
    assert sorted(lines) == ["k8s-aws-v1.(hidden)", "out", "rest"]


def test_a_child_without_output(tmp_path: Path) -> None:
    assert run(tmp_path, "pass").ok


def test_the_environment_is_only_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    assert "FERNET" not in run(tmp_path, "import os; print(dict(os.environ))").stdout


def test_the_deadline_ends_it(tmp_path: Path) -> None:
    done = run(tmp_path, "import time; time.sleep(600)", deadline_s=0.2)
    assert (done.ended_by, done.code) == ("deadline", -signal.SIGTERM)
    assert not done.ok


def test_whoever_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_fleet.hooks.helm.binary.process.GRACE_SECONDS", 0.3)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    out = tmp_path / "stdout"
    done = run(tmp_path, code, stop=lambda: "enough" if out.exists() and out.read_text() else "")
    assert (done.ended_by, done.code) == ("enough", -signal.SIGKILL)


def test_success_after_being_told_to_stop_is_no_success(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(0)); print(1, flush=True)"
    code += "; time.sleep(600)"
    out = tmp_path / "stdout"
    done = run(tmp_path, code, stop=lambda: "enough" if out.exists() and out.read_text() else "")
    assert done.code == 0
    assert not done.ok


def test_an_exception_in_the_parent_leaves_no_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    def explode() -> str:
        if pid_file.exists() and pid_file.read_text():
            raise KeyboardInterrupt
        return ""

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, code, stop=explode)
    wait_gone(int(pid_file.read_text()))


def test_a_grandchild_ends_with_its_session(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(pid_file)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    )
    done = run(tmp_path, code, stop=lambda: "enough" if pid_file.exists() and pid_file.read_text() else "")
    assert done.ended_by == "enough"
    wait_gone(int(pid_file.read_text()))


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent_code = (
        "import sys, os; from pathlib import Path; from gpu_fleet.hooks.helm.binary.process import run_child;"
        f"run_child([sys.executable, '-c', {child!r}], env=dict(os.environ),"
        f"folder=Path({str(tmp_path)!r}), deadline_s=600)"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "plugins")}
    with subprocess.Popen([sys.executable, "-c", parent_code], env=env) as parent:
        until = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        parent.kill()
    wait_gone(int(pid_file.read_text()))
