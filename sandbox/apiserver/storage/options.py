"""How an object is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox.apiserver.access.auth import User


@dataclass
class Options:
    """
    How to write.

    :ivar manager: owner of the written fields.
    :ivar validation: Ignore, Warn or Strict: what to do about undeclared fields.
    :ivar warnings: filled with what the client is to be warned of.
    :ivar repeated: what strict decoding says of keys that the body has more than once.
    """

    user: User
    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"
    force: bool = False
    warnings: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
