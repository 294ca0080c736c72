"""Runs a command and ends all its processes when its starter is gone: ``python -m demo.warden PID COMMAND…``.

``airflow standalone`` starts components that start task processes. If the demo or a test is killed with SIGKILL, it
cannot end them; the warden notices that its starter (PID; 0 for none) is gone and ends them all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType

from demo.processes import stop_descendants

LOOK_EVERY_S = 1.0


class Ended(Exception):
    """A signal asked for the end."""


def _end(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)


def main(argv: list[str]) -> int:
    """The command's exit code, or 128 + the signal that ended the warden."""
    starter, command = int(argv[0]), argv[1:]
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    child = subprocess.Popen(command)
    code = 0
    try:
        while child.poll() is None:
            if starter and os.getppid() != starter:
                print("warden: the starter is gone; ending everything it started", file=sys.stderr, flush=True)
                break
            time.sleep(LOOK_EVERY_S)
        code = child.returncode or 0
    except Ended as ended:
        code = 128 + int(ended.args[0])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    stop_descendants(os.getpid(), first=child)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
