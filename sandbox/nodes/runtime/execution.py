"""Probe containers are executed: their command runs as a local process group in a scratch folder.

It sees a clean environment and a PATH that begins with the fakes in ``bin/``: ``nvidia-smi`` (only where the container
sees a GPU, as the container toolkit mounts it), ``vectorAdd``, and a ``sleep`` that follows the sandbox's speed. Paths
of the container's own file system that the command names are replaced by private ones. Python programs run in this
machine's python3 with the clock and the CUDA driver of ``bin/libcuda``.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox.nodes.runtime.processes import SIGKILL_CODE, Process

BIN = Path(__file__).resolve().parents[1] / "bin"
DRIVER_BIN = BIN / "driver"
DCGM_BIN = BIN / "dcgm"
#: The interpreter of ``python:*`` images.
PYTHON = sys.executable
SAMPLES = "/cuda-samples"
#: Real seconds after which a probe is killed: none takes minutes, and none may outlive a test run.
LONGEST = 900.0
_READ = 65536
_KILL_TIMEOUT = 5.0
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Command:
    """
    :ivar argv: command and arguments, paths replaced already.
    :ivar env: the whole environment.
    :ivar scratch: its working folder; removed afterwards.
    """

    argv: list[str]
    env: dict[str, str]
    scratch: Path


def replace_paths(text: str, replacements: dict[str, str]) -> str:
    """Longest first, so that ``/dev/termination-log`` is not cut by a mount at ``/dev``."""
    for literal in sorted(replacements, key=len, reverse=True):
        text = text.replace(literal, replacements[literal])
    return text


def search_path(sees_gpu: bool, dcgm: bool = False) -> str:
    folders = ([str(DRIVER_BIN)] if sees_gpu else []) + ([str(DCGM_BIN)] if dcgm else [])
    return ":".join([*folders, str(BIN), _SYSTEM_PATH])


def _parent_death_signal() -> Callable[[], None] | None:
    """For the child: die with the sandbox, even when that is killed (prctl(2); Linux only)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def set_it() -> None:
        prctl(1, signal.SIGKILL)

    return set_it


class Executed(Process):
    """A process group of this machine."""

    def __init__(self, command: Command) -> None:
        super().__init__()
        self._command = command
        self._child: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        code = SIGKILL_CODE
        try:
            code = await asyncio.wait_for(self._execute(), LONGEST)
        except TimeoutError:
            self.log(f"killed after {LONGEST:.0f} s")
        finally:
            self._signal(signal.SIGKILL)
            self.finish(code)

    async def _execute(self) -> int:
        try:
            self._child = await asyncio.create_subprocess_exec(
                *self._command.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self._command.scratch,
                env=self._command.env,
                start_new_session=True,
                preexec_fn=_parent_death_signal(),
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            # The runtime's own words and code for a command that is not in the image.
            self.log(f'exec: "{self._command.argv[0]}": executable file not found in $PATH ({error.strerror})')
            return 127 if isinstance(error, FileNotFoundError) else 126
        child = self._child
        assert child.stdout is not None  # noqa: S101 - asked for above
        while chunk := await child.stdout.read(_READ):
            self.write(chunk)
        code = await child.wait()
        return 128 - code if code < 0 else code

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)

    async def stop(self, grace: float) -> None:
        self._signal(signal.SIGTERM)
        await asyncio.wait([self._task], timeout=grace)
        if not self._task.done():
            self._signal(signal.SIGKILL)
            await asyncio.wait([self._task], timeout=_KILL_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.finish(SIGKILL_CODE)
        self._task.cancel()


def clean_up(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
