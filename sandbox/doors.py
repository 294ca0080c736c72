"""A server's listening socket: closed, it refuses new connections and drops open ones; it reopens at its old address.

The server keeps its state: this simulates an outage of the network or of a load balancer, not a loss of data.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sandbox.parts import PartState


@dataclass(frozen=True)
class Link:
    """An open connection of a server, and its socket, which a TLS transport no longer knows once it is closed."""

    transport: asyncio.Transport
    socket: Any

    def drop(self) -> None:
        """End it now, without waiting for the other side's part in ending TLS.

        CPython before 3.11.8 cannot abort a TLS transport that was closed twice (python/cpython#113214).
        """
        try:
            self.transport.abort()
        except AttributeError:
            if self.socket is not None:
                with contextlib.suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)


def links(runner: web.AppRunner) -> list[Link]:
    """The open connections of a server."""
    server = runner.server
    found = [connection.transport for connection in server.connections] if server is not None else []
    return [Link(each, _socket_of(each)) for each in found if each is not None]


def _socket_of(transport: asyncio.Transport) -> Any:
    try:
        return transport.get_extra_info("socket")
    except AttributeError:
        return None  # closed twice, see Link.drop


class Door:
    """
    :param runner: the server, set up.
    :param port: on the loopback interface.
    :param context: for TLS.
    """

    def __init__(self, name: str, runner: web.AppRunner, port: int, context: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.restarts = 0
        self._runner = runner
        self._port = port
        self._context = context

    @property
    def state(self) -> PartState:
        return PartState.RUNNING if self._runner.sites else PartState.STOPPED

    async def stop(self) -> None:
        """Refuse connections and drop the open ones; does nothing if it is closed."""
        for site in list(self._runner.sites):
            await site.stop()
        for link in links(self._runner):
            link.drop()

    async def resume(self) -> None:
        """Listen at the old address again; does nothing if it is open."""
        if not self._runner.sites:
            await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._context, backlog=512).start()
