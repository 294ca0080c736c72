"""Reads single files of a git repository at one commit, without a work tree."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checkout:
    """
    :ivar folder: a clone, bare or not.
    :ivar name: ``owner/repository``, as the files name their source.
    :ivar revision: tag, branch or commit.
    """

    folder: Path
    name: str
    revision: str = "HEAD"

    def text(self, path: str) -> str:
        """
        :raises OSError: the commit has no such file.
        """
        return self._git("show", f"{self.revision}:{path}")

    @property
    def commit(self) -> str:
        return self._git("rev-parse", f"{self.revision}^{{commit}}").strip()

    @property
    def date(self) -> str:
        """The day of the commit."""
        return self._git("show", "--no-patch", "--format=%cs", self.commit).strip()

    def source(self, **more: str) -> dict[str, str]:
        """What a generated file says of it."""
        return {"repository": self.name, "commit": self.commit, "date": self.date, **more}

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(self.folder), *arguments], capture_output=True, check=False)
        if done.returncode:
            raise OSError(f"{self.folder}: git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()
