"""Nothing outlives its starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.processes import alive

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
#: A command that starts a child in a session of its own and tells both pids.
COMMAND = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
WILLING = COMMAND.format(child="import time; time.sleep(600)")
#: With a child that ignores SIGTERM: that costs the warden's whole patience.
STUBBORN = COMMAND.format(child="import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")
#: Starts a warden for a command and waits, as the demo does.
STARTER = """
import os, subprocess, sys, time
args = [sys.executable, "-m", "demo.warden", str(os.getpid()), sys.executable, "-c", sys.argv[1]]
print(subprocess.Popen(args, start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def wait_for_end(pids: list[int], timeout: float = 40) -> list[int]:
    deadline = time.monotonic() + timeout
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive(pids)


def read_pids(process: subprocess.Popen[str], count: int) -> list[int]:
    assert process.stdout is not None
    pids: list[int] = []
    while len(pids) < count:
        pids += [int(word) for word in process.stdout.readline().split()]
    return pids


@pytest.mark.parametrize(("number", "command"), [(signal.SIGKILL, STUBBORN), (signal.SIGTERM, WILLING)])
def test_everything_ends_with_a_killed_starter(number: signal.Signals, command: str) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pids = read_pids(starter, 3)
    starter.send_signal(number)
    starter.wait()
    assert starter.stdout is not None
    starter.stdout.close()
    assert wait_for_end(pids) == []


def test_everything_ends_with_a_terminated_warden() -> None:
    warden = subprocess.Popen(
        [sys.executable, "-m", "demo.warden", str(os.getpid()), sys.executable, "-c", WILLING],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    pids = read_pids(warden, 2)
    warden.terminate()
    assert warden.wait(timeout=40) == 128 + signal.SIGTERM
    assert warden.stdout is not None
    warden.stdout.close()
    assert wait_for_end(pids) == []


def test_exit_code_is_the_commands_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo.warden", "0", sys.executable, "-c", "raise SystemExit(7)"], cwd=ROOT, timeout=30
    )
    assert done.returncode == 7
