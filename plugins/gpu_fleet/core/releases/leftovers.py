"""What a release has left in the cluster. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fate(StrEnum):
    """What becomes of a leftover."""

    KEPT = "kept"  # on purpose: its kind, or its annotation, protects it
    TERMINATING = "terminating"  # deleted, and still there


@dataclass(frozen=True)
class Leftover:
    """An object of a release that still exists.

    :ivar target: the object, as ``Kind namespace/name``.
    :ivar waits_for: of a terminating object: its finalizers, or its grace period.
    """

    target: str
    fate: Fate
    waits_for: str = ""

    @property
    def terminating(self) -> bool:
        """Whether the object disappears without further action, so that waiting for it makes sense."""
        return self.fate is Fate.TERMINATING

    def __str__(self) -> str:
        return f"{self.target} ({self.fate})" + (f": {self.waits_for}" if self.waits_for else "")
