"""For tests of any part that needs AWS: moto and the account, up for the length of a ``with`` block.

::

    @pytest_asyncio.fixture
    async def account(tmp_path):
        async with running_account(Settings(state_dir=tmp_path, speed=50)) as running:
            yield running          # running.aws, running.account, running.settings
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sandbox.aws import account as accounts
from sandbox.aws import moto as moto_server
from sandbox.aws.client import Aws
from sandbox.settings import Settings


@dataclass(frozen=True)
class RunningAccount:
    """:ivar aws: calls to moto without the shim."""

    aws: Aws
    account: accounts.Account
    settings: Settings
    moto: moto_server.Moto


@asynccontextmanager
async def running_account(settings: Settings) -> AsyncIterator[RunningAccount]:
    """Starts moto, prepares the account, and ends moto afterwards."""
    moto = await moto_server.start(settings)
    aws = Aws(moto.url, settings.region)
    try:
        yield RunningAccount(aws, await accounts.prepare(aws, settings), settings, moto)
    finally:
        aws.close()
        await moto.close()
