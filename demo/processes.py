"""Process trees: their members, their memory, and how to end them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path


def session_pids(leader: int) -> list[int]:
    """The processes of the session that ``leader`` started, and their descendants in sessions of their own."""
    parents: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            parents[int(entry.name)] = (int(fields[1]), int(fields[3]))  # ppid, session
    members = {pid for pid, (_, session) in parents.items() if session == leader or pid == leader}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in parents.items() if parent in members} - members
        members |= more
        grown = bool(more)
    return sorted(members)


def started(pid: int) -> str | None:
    """When a process was started, to distinguish it from a later one with the same pid; ``None`` if it does not exist.

    The boot, and the clock ticks between the boot and the start: field 22 of ``/proc/<pid>/stat`` (proc_pid_stat(5)).
    """
    try:
        ticks = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {ticks}"
    except (OSError, IndexError):
        return None


def stop_group(process: subprocess.Popen[bytes], grace: float = 15) -> None:
    """SIGTERM to the process's session, SIGKILL to what is left after ``grace`` seconds."""
    stop_pid_group(process.pid, grace, reap=process)


def stop_pid_group(pid: int, grace: float = 15, reap: subprocess.Popen[bytes] | None = None) -> None:
    members = session_pids(pid)
    _signal([pid] if pid in members else members, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline:
        if reap is not None:
            reap.poll()
        if not alive(members):
            break
        time.sleep(0.1)
    _signal(sorted(set(alive(members)) | set(session_pids(pid))), signal.SIGKILL)
    if reap is not None:
        reap.wait()


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def alive(pids: list[int]) -> list[int]:
    """Those of the pids that exist and are not zombies."""
    living = []
    for pid in pids:
        try:
            state = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            continue
        if state != "Z":
            living.append(pid)
    return living


def pss_mb(pids: list[int]) -> float:
    """Proportional set size of the processes together, in MiB (shared pages are counted once)."""
    total = 0
    for pid in pids:
        try:
            for line in (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
                    break
        except OSError:
            continue
    return total / 1024


def stop_descendants(pid: int, *, first: subprocess.Popen[bytes], grace: float = 10) -> None:
    """End all processes below ``pid``: first ``first``, so that it can end its own children in order, then the rest.

    The rest gets SIGTERM; what is still alive after ``grace`` seconds is killed.
    """
    members = [member for member in session_pids(pid) if member != pid]
    if first.poll() is None:
        first.terminate()
    asked = False
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and alive(members):
        if first.poll() is not None and not asked:
            _signal(alive(members), signal.SIGTERM)
            asked = True
        time.sleep(0.1)
    left = {member for member in session_pids(pid) if member != pid} | set(alive(members))
    _signal(sorted(left), signal.SIGKILL)
