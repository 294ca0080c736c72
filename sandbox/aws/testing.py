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
from sandbox.aws.eks.clusters import admit_creator
from sandbox.aws.shim import Shim
from sandbox.settings import Clock, Settings


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


@dataclass(frozen=True)
class RunningCloud:
    """:ivar aws: calls through the shim, signed with the account's own key."""

    aws: Aws
    shim: Shim
    account: accounts.Account
    settings: Settings
    moto: moto_server.Moto


@asynccontextmanager
async def running_cloud(settings: Settings) -> AsyncIterator[RunningCloud]:
    """The same behind the shim, as users of the sandbox meet it; EKS knows the cluster, which has no endpoint."""
    async with running_account(settings) as running:
        shim = Shim(settings, Clock(settings.speed, settings.seed), running.moto.url)
        await shim.start()
        admit_creator(shim.eks, settings, running.account)
        account = running.account
        aws = Aws(shim.url, settings.region, account.access_key_id, account.secret_access_key)
        try:
            yield RunningCloud(aws, shim, account, settings, running.moto)
        finally:
            aws.close()
            await shim.close()
