"""The private folder of helm commands, and the removal of those that killed workers left behind.

A worker that is SIGKILLed cannot remove its folder, which contains values and perhaps a kubeconfig with a token; the
process that makes the next folder does. A folder is in use while its maker holds a lock on it: the kernel releases the
lock with the process. A pid in the name would not do where containers share a temporary directory and pids are
reused.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)

_PREFIX = "gpu-fleet-helm-"


class PrivateFolder:
    """A locked folder of mode 0700, removed on exit: a context manager."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> PrivateFolder:
        sweep()
        while self.path is None:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            try:
                self._lock = _locked(path)
            except FileNotFoundError:  # swept before it could be locked
                continue
            self.path = path
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on a new folder; ``None`` where its file system does not support such locks.

    :raises FileNotFoundError: if a sweep was faster and has removed the folder, or is removing it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FileNotFoundError(path) from None
    except OSError:  # then no sweep gets the lock either, and the folder stays
        os.close(descriptor)
        return None
    if not path.exists():
        os.close(descriptor)
        raise FileNotFoundError(path)
    return descriptor


def sweep() -> None:
    """Remove this user's folders in the temporary directory that no living process has locked."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            log.info("removed %s, left behind by a process that was killed", path)
        except OSError:  # in use
            pass
        finally:
            os.close(descriptor)
