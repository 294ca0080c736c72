"""A server's listening socket: closed, it refuses new connections and drops open ones; it reopens at its old address.

The server keeps its state: this simulates an outage of the network or of a load balancer, not a loss of data.
"""

from __future__ import annotations

import ssl

from aiohttp import web

from sandbox.parts import PartState


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
        server = self._runner.server
        for connection in list(server.connections) if server is not None else []:
            if connection.transport is not None:
                connection.transport.abort()

    async def resume(self) -> None:
        """Listen at the old address again; does nothing if it is open."""
        if not self._runner.sites:
            await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._context, backlog=512).start()
