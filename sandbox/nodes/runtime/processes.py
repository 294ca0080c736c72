"""A container's main process: an object that runs, prints, and ends with an exit code."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

SIGTERM_CODE = 143
SIGKILL_CODE = 137
_KEEP_BYTES = 256 * 1024


class Process(ABC):
    """A running container. Subclasses call :meth:`write` and :meth:`finish`."""

    def __init__(self) -> None:
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._output = bytearray()
        self._listener: Callable[[], None] | None = None

    @property
    def ended(self) -> bool:
        return self._exit.done()

    async def wait(self) -> int:
        """The exit code, once there is one."""
        return await asyncio.shield(self._exit)

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """Ask the process to end and force it after ``grace`` real seconds; returns when it has ended."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once, without waiting; used when the machine itself is terminated."""

    def write(self, text: str | bytes) -> None:
        self._output += text.encode() if isinstance(text, str) else text
        if len(self._output) > _KEEP_BYTES:
            del self._output[: len(self._output) - _KEEP_BYTES]
        if self._listener:
            self._listener()

    def log(self, line: str) -> None:
        self.write(line + "\n")

    def output(self) -> str:
        return self._output.decode(errors="replace")

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each write."""
        self._listener = listener

    def finish(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)


class Simulated(Process):
    """A process that is a coroutine: ``main(process)`` returns the exit code.

    :param stopping: how long it takes to handle SIGTERM, as something to await; with None it ignores the signal, as a
        process that is PID 1 and installed no handler does.
    :param on_end: called once when it has ended, for any reason.
    """

    def __init__(
        self,
        main: Callable[[Simulated], Awaitable[int]],
        *,
        stopping: Callable[[], Awaitable[None]] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._stopping = stopping
        self._on_end = on_end
        self._task = asyncio.create_task(self._run(main))

    async def _run(self, main: Callable[[Simulated], Awaitable[int]]) -> None:
        code = SIGKILL_CODE
        try:
            code = await main(self)
        finally:
            if self._on_end:
                self._on_end()
            self.finish(code)

    async def stop(self, grace: float) -> None:
        handling = asyncio.ensure_future(self._stopping()) if self._stopping else None
        await asyncio.wait(
            {self._task} if handling is None else {self._task, handling},
            timeout=grace,
            return_when=asyncio.FIRST_COMPLETED,
        )
        self.finish(0 if handling is not None and handling.done() else SIGKILL_CODE)
        for task in (self._task, handling):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def kill(self) -> None:
        self.finish(SIGKILL_CODE)
        self._task.cancel()


async def forever(process: Simulated) -> int:  # noqa: ARG001 - the signature of a main
    """A server: it runs until it is stopped."""
    await asyncio.Event().wait()
    return 0


def ends(after: float, code: int) -> Callable[[Simulated], Awaitable[int]]:
    """A command that takes ``after`` real seconds."""

    async def main(process: Simulated) -> int:  # noqa: ARG001
        await asyncio.sleep(after)
        return code

    return main
