"""Starting the servers of the sandbox on their ports."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sandbox.state import SandboxError

#: What :class:`sandbox.cloud.cloud.Cloud` closes, by name; the last to be started comes first.
Closers = list[tuple[str, Callable[[], Any]]]


async def bind(name: str, start: Callable[[int], Any], port: int) -> None:
    """Start a server.

    :raises SandboxError: if it cannot listen, with the reason and the remedy.
    """
    try:
        await start(port)
    except OSError as error:
        raise SandboxError(
            f"cannot listen on 127.0.0.1:{port} for {name}: {os.strerror(error.errno or 0)}; free the port or choose "
            f"another with --{name}-port"
        ) from error
