"""The audit log: every write request to Kubernetes and AWS, in one order, as JSON lines.

Writes to the API server are ``audit.k8s.io/v1`` Events (``sandbox/apiserver/requests/audit.py``), those to AWS are
records as CloudTrail keeps them (``sandbox/aws/trail.py``). The newest ones stay in memory for ``GET /audit``; the file
has more.
"""

from __future__ import annotations

import datetime as dt
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

#: Entries that are kept in memory: about 700 bytes each.
KEPT = 50_000
#: Bytes after which the file is put aside as ``audit.jsonl.1``, as ``--audit-log-maxsize`` does.
LARGEST = 64 * 2**20
FILE = "audit.jsonl"


def timestamp(moment: float) -> str:
    """metav1.MicroTime of epoch seconds."""
    return dt.datetime.fromtimestamp(moment, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Page:
    """
    :ivar entries: JSON texts, oldest first.
    :ivar following: the number to ask from the next time.
    :ivar lost: entries between the number asked from and the first one here, which memory no longer has.
    """

    entries: list[bytes]
    following: int
    lost: int

    def encode(self) -> bytes:
        head = f'{{"next":{self.following},"lost":{self.lost},"entries":['.encode()
        return head + b",".join(self.entries) + b"]}"


class AuditLog:
    """
    :param folder: where the file is written (mode 0600); ``None`` for none.
    """

    def __init__(self, folder: Path | None = None, *, kept: int = KEPT, largest: int = LARGEST) -> None:
        self._path = None if folder is None else folder / FILE
        self._largest = largest
        self._kept: deque[bytes] = deque(maxlen=kept)
        self._count = 0
        self._file: IO[bytes] | None = None
        self._size = 0

    def append(self, entry: dict[str, Any]) -> None:
        line = msgspec.json.encode(entry)
        self._kept.append(line)
        self._count += 1
        if self._path is not None:
            self._write(self._path, line)

    def since(self, number: int) -> Page:
        """The entries from a number on (0: the first one)."""
        first = self._count - len(self._kept)
        start = min(max(number - first, 0), len(self._kept))
        return Page(list(self._kept)[start:], self._count, max(0, first - number))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, path: Path, line: bytes) -> None:
        if self._file is None or self._size + len(line) > self._largest:
            self.close()
            if path.exists():
                path.replace(path.with_name(path.name + ".1"))
            # Unbuffered: a sandbox that is killed has written down all that it did.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
            self._size = 0
        self._size += self._file.write(line + b"\n") or 0
