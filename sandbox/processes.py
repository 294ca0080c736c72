"""The sandbox as a process: in the foreground, detached, and how it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox import state
from sandbox.audit import AuditLog
from sandbox.chartrepo import ChartError
from sandbox.cloud.cloud import Cloud
from sandbox.cloud.options import Options
from sandbox.settings import Settings
from sandbox.state import SandboxError

LOG = "sandbox.log"
_ROOT = Path(__file__).resolve().parents[1]
_START_TIMEOUT = 180.0  # seconds
_GRACE = 15.0  # seconds between SIGTERM and SIGKILL
_TAIL = 20  # lines of the log that are shown when a detached start fails


def run_foreground(directory: Path, speed: float, seed: int, options: Options) -> int:
    """
    Run until SIGINT or SIGTERM, or until a part has failed for good.

    :return: exit code: 0 after a signal once it was up, 130 before, 1 if something broke.
    """
    lock = state.Lock(directory)
    if not lock.acquire_or_time_out():
        found = state.read_stale(directory) or {}
        raise SandboxError(
            f"a sandbox (process {found.get('pid', 'unknown')}) already runs in {directory}; end it with "
            f"python -m sandbox down, or choose another --state-dir"
        )
    try:
        state.remove(directory)
        settings = Settings(state_dir=directory, speed=speed, seed=seed, audit=AuditLog(directory))
        return asyncio.run(_serve(settings, options))
    finally:
        lock.release()


async def _serve(settings: Settings, options: Options) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        cloud = Cloud(settings, options, _say)
        return await _until(stop, cloud)
    except ChartError as error:
        raise SandboxError(f"CHARTS_DIR: {error}", code=2) from error


async def _until(stop: asyncio.Event, cloud: Cloud) -> int:
    stopped = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(_bring_up(cloud))
    try:
        ends: set[asyncio.Future[Any]] = {stopped, cloud.broken}
        await asyncio.wait({*ends, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if cloud.broken.done():
            raise SandboxError(cloud.broken.result())
        return 0 if starting.done() else 130
    finally:
        for task in (stopped, starting):
            task.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        _say("ending")
        await cloud.close()
        cloud.broken.cancel()


async def _bring_up(cloud: Cloud) -> None:
    await cloud.start()
    await cloud.wait_ready()
    _say(f"ready: cluster {cloud.settings.cluster_name}, speed {cloud.settings.speed:g}")


def _say(text: str) -> None:
    print(f"sandbox: {text}", flush=True)


def start_detached(directory: Path, arguments: list[str]) -> dict[str, Any]:
    """
    Starts the sandbox in a session of its own and returns its state when it is ready.

    :raises SandboxError: it ended instead; the message ends with its log.
    """
    lock = state.Lock(directory)
    if not lock.acquire_or_time_out():
        found = state.read_stale(directory) or {}
        raise SandboxError(f"a sandbox (process {found.get('pid', 'unknown')}) already runs in {directory}")
    lock.release()
    state.remove(directory)
    log_path = directory / LOG
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox", "up", "--state-dir", str(directory), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=_ROOT,
        )
    deadline = time.monotonic() + _START_TIMEOUT
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SandboxError(f"the sandbox ended while starting:\n{_tail(log_path)}")
            current = state.read_stale(directory)
            if current is not None and current["phase"] == "ready":
                return current
            time.sleep(0.1)
        raise SandboxError(f"the sandbox was not ready after {_START_TIMEOUT:.0f} s:\n{_tail(log_path)}")
    except BaseException:
        if process.poll() is None:
            stop(directory, process.pid)
        raise


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-_TAIL:])


def stop(directory: Path, pid: int | None = None) -> bool:
    """
    Ends the sandbox of a state directory with all its children; nothing running is no error.

    :param pid: its process, where state.json may not be there yet.
    :return: whether one was running.
    :raises SandboxError: the process belongs to another user, or does not end.
    """
    with state.Lock(directory) as free:
        if free:
            state.remove(directory)  # left behind by a sandbox that was killed
            return False
    pid = pid or (state.read_stale(directory) or {}).get("pid")
    if pid is None:
        raise SandboxError(f"a sandbox is just starting in {directory}; try again")
    family = _descendants(pid)
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        raise SandboxError(f"process {pid} belongs to another user") from error
    except ProcessLookupError:
        pass
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        if not _any_alive([pid, *family]):
            break
        time.sleep(0.05)
    for survivor in {pid, *family, *_descendants(pid)}:
        if _any_alive([survivor]):
            with suppress(ProcessLookupError):
                os.kill(survivor, signal.SIGKILL)
    state.remove(directory)
    return True


def _descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    pending = [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        found += children
        pending += children
    return found


def _any_alive(pids: list[int]) -> bool:
    for pid in pids:
        with suppress(OSError, IndexError):
            if (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return True
    return False
