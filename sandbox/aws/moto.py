"""Moto's server as a child process: the AWS services that need no simulation of our own.

The child is :mod:`sandbox.aws.moto_child`. It binds an ephemeral port, prints it in one line on its standard output,
logs to ``moto.log`` in the state directory, and ends with its parent, however the parent ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from sandbox.settings import Settings

_START_TIMEOUT = 60.0  # seconds; importing moto takes two on an idle machine, many on a busy one
_ROOT = Path(__file__).resolve().parents[2]


class MotoError(RuntimeError):
    """Moto's server did not start; the message says where its log is."""


@dataclass
class Moto:
    """A running moto server."""

    url: str
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def waits(self) -> list[dict[str, Any]]:
        """The waits that it injected so far: label, started, ended (epoch seconds)."""
        found: list[dict[str, Any]] = await self._ask("GET", "waits")
        return found

    async def transitions(self, since: int, wait: float = 0.0) -> list[dict[str, Any]]:
        """Changes of instances' state from number ``since`` on: number, instance, state, time (epoch seconds).

        :param wait: real seconds to wait for the first one.
        """
        found: list[dict[str, Any]] = await self._ask("GET", f"transitions?since={since}&wait={wait}")
        return found

    async def match(self, events: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
        """For each event the targets of EventBridge's rules: rule, target, queue, refused."""
        found: list[list[dict[str, str]]] = await self._ask("POST", "match", events)
        return found

    async def send(self, messages: list[dict[str, str]]) -> int:
        """Put messages (queue, body) into queues; how many could be put."""
        return int(await self._ask("POST", "send", messages))

    async def reclaim(self, instances: list[str], action: str) -> list[str]:
        """EC2 terminates or stops instances that still run; their ids."""
        taken: list[str] = await self._ask("POST", "reclaim", {"instances": instances, "action": action})
        return taken

    async def reservations(self) -> list[dict[str, Any]]:
        """Capacity reservations as ``DescribeCapacityReservations`` shows them, with their ``Instances``."""
        found: list[dict[str, Any]] = await self._ask("GET", "reservations")
        return found

    async def reserve(self, body: dict[str, Any], identifier: str = "") -> dict[str, Any]:
        """Reserve capacity, or change a reservation.

        :raises LookupError: there is no reservation of that id.
        """
        try:
            made: dict[str, Any] = await self._ask("POST", f"reservations{'/' if identifier else ''}{identifier}", body)
        except aiohttp.ClientResponseError as error:
            if error.status == 404:
                raise LookupError(f"no capacity reservation {identifier}") from error
            raise
        return made

    async def _ask(self, method: str, what: str, body: Any = None) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"{self.url}/_sandbox/{what}", json=body) as reply,
        ):
            reply.raise_for_status()
            return await reply.json()

    async def close(self) -> None:
        """Ends the child; safe to call twice."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), 3)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    self.process.kill()
                await self.process.wait()


async def start(settings: Settings) -> Moto:
    """Starts moto and returns once it accepts connections."""
    log_path = settings.state_dir / "moto.log"
    argv = [
        sys.executable, "-m", "sandbox.aws.moto_child",
        "--parent", str(os.getpid()),
        "--speed", str(settings.speed),
        "--seed", str(settings.seed),
        "--region", settings.region,
        "--account", settings.account,
        "--kubernetes-version", settings.kubernetes_version,
        "--amis", str(settings.state_dir / "amis.json"),
    ]  # fmt: skip
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MOTO_"))}
    with log_path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log, cwd=_ROOT, env=env
        )
    assert process.stdout is not None  # noqa: S101 - it was asked for above
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT)
        port = json.loads(line)["port"]
    except (TimeoutError, ValueError, KeyError) as error:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise MotoError(f"moto's server did not start; see {log_path}") from error
    return Moto(f"http://127.0.0.1:{port}", process)
