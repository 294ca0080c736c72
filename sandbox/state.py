"""The state directory: one sandbox at a time, and ``state.json`` (mode 0600), which says how to reach it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

MINIMUM_FREE_MB = 100  # moto's log, certificates, image layers of nothing: a few MB; this leaves room for a database
STATE = "state.json"
_LOCK_TIMEOUT = 0.5  # seconds


class SandboxError(RuntimeError):
    """A problem that the user can fix; the message says how. ``code`` is the exit status."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class NotRunning(SandboxError):
    """No sandbox is running with that state directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"no sandbox is running in {directory}; start one with: python -m sandbox up", code=3)


def prepare_directory(directory: Path) -> None:
    """Makes the state directory, private to its owner.

    :raises SandboxError: it cannot be made or written, or the disk is full.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        probe = directory / f".probe-{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SandboxError(f"no space left at {directory}; free some, or choose another --state-dir") from error
        raise SandboxError(
            f"cannot write the state directory {directory}: {error.strerror}; choose another with --state-dir"
        ) from error
    free = shutil.disk_usage(directory).free // 2**20
    if free < MINIMUM_FREE_MB:
        raise SandboxError(
            f"only {free} MB are free at {directory} and {MINIMUM_FREE_MB} MB are needed; free some, or choose another "
            "--state-dir"
        )


class Lock:
    """Held by the running sandbox; the kernel releases it when that process ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._descriptor: int | None = None

    def acquire_or_time_out(self) -> bool:
        """Like :meth:`acquire`, but waits for a reader (``status`` takes the lock for a moment)."""
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while not self.acquire():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def acquire(self) -> bool:
        """Whether it was free."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            return True  # no directory: nothing runs there
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def write(directory: Path, state: dict[str, Any]) -> None:
    """Replaces state.json at once; it holds credentials, so only its owner can read it from its first byte on."""
    temporary = directory / f".{STATE}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        json.dump(state, handle, indent=1)
    temporary.replace(directory / STATE)


def read(directory: Path) -> dict[str, Any] | None:
    """The state of a running sandbox; ``None`` when there is no file, or when the process that wrote it has ended."""
    with Lock(directory) as free:
        if free:
            return None
    return read_stale(directory)


def read_stale(directory: Path) -> dict[str, Any] | None:
    """The content of state.json, whether or not its writer is still running."""
    try:
        found: dict[str, Any] = json.loads((directory / STATE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def remove(directory: Path) -> None:
    (directory / STATE).unlink(missing_ok=True)
