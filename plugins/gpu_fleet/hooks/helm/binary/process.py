"""One helm child: argument list, own session, dies with its parent, output to files, hard deadline, killable.

Why files and not pipes: a pipe without a reader would kill helm in the middle of an apply.
Why an own session with a parent-death signal: a worker that is SIGKILLed must not leave a helm that continues to write
while the next try starts another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_fleet.core.releases.helm.output import redact

log = logging.getLogger(__name__)

#: Seconds between SIGTERM and SIGKILL. On SIGTERM helm writes its revision's status (install, upgrade), which takes
#: one API call; Airflow itself kills a terminated task after five seconds.
GRACE_SECONDS = 4.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_SECONDS = 0.05
_KEPT = 200_000

# Looked up before any fork: between fork and exec only async-signal-safe calls are allowed.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass(frozen=True)
class Finished:
    """How a child ended.

    :ivar code: exit status; negative: the signal that ended it.
    :ivar ended_by: why we ended it (``deadline`` or the stop function's answer); empty if it ended by itself.
    :ivar stdout: and ``stderr``: at most the last 200,000 characters.
    """

    code: int
    stdout: str
    stderr: str
    ended_by: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.code == 0 and not self.ended_by


def _tie_to_parent(parent: int) -> Callable[[], None]:
    """What the child runs before exec. The signal is bound to the *thread* that forks, best the main one."""

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the line above took effect
            os._exit(125)

    return prepare


class _Tail:
    """Follows a growing file and hands over whole lines."""

    def __init__(self, path: Path, sink: Callable[[str], None] | None) -> None:
        self._path, self._sink, self._position, self._rest = path, sink, 0, b""

    def follow(self, *, last: bool = False) -> None:
        if self._sink is None:
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            chunk = file.read()
        self._position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if last and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            text = redact(line.decode("utf-8", "replace")).rstrip()
            if text:
                self._sink(text)


def run_child(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    deadline_s: float,
    stop: Callable[[], str] = lambda: "",
    sink: Callable[[str], None] | None = None,
) -> Finished:
    """Run a program until it ends, or end it.

    :param folder: private directory for its output files and as its working directory.
    :param deadline_s: seconds after which it is ended.
    :param stop: asked repeatedly; a non-empty answer ends the child and is reported in ``ended_by``.
    :param sink: gets each line of stderr and stdout, without tokens, while it runs.
    """
    out, err = folder / "stdout", folder / "stderr"
    started = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=dict(env),
            cwd=folder,
            start_new_session=True,
            preexec_fn=_tie_to_parent(os.getpid()),
        )
    tails = [_Tail(err, sink), _Tail(out, sink)]
    ended_by = ""
    try:
        while True:
            try:
                child.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                pass
            for tail in tails:
                tail.follow()
            ended_by = stop() or ("deadline" if time.monotonic() - started > deadline_s else "")
            if ended_by:
                log.warning("ending %s (pid %s): %s", Path(argv[0]).name, child.pid, ended_by)
                break
    finally:
        # Also on an exception from a signal handler, such as Airflow's execution time-out.
        _end(child)
    for tail in tails:
        tail.follow(last=True)
    return Finished(child.returncode, _text(out), _text(err), ended_by, time.monotonic() - started)


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole session, grace, SIGKILL, reap."""
    if child.poll() is not None:
        return
    _signal(child.pid, signal.SIGTERM)
    _signal(child.pid, signal.SIGCONT)  # a stopped process would never see the other one
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _signal(child.pid, signal.SIGKILL)
        child.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _text(path: Path) -> str:
    return path.read_bytes()[-_KEPT:].decode("utf-8", "replace")
