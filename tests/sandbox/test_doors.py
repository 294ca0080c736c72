"""Dropping connections, whatever they have been through."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from sandbox.doors import Link


class ClosedTwice(asyncio.Transport):
    """A TLS transport of CPython before 3.11.8 that was closed twice."""

    def abort(self) -> None:
        raise AttributeError("'NoneType' object has no attribute '_abort'")


def test_a_connection_whose_transport_was_closed_twice_is_dropped() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Link(ClosedTwice(), ours).drop()
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("state", ["closed", None])
def test_a_connection_that_is_gone_is_no_error(state: Any) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    Link(ClosedTwice(), ours if state else None).drop()
