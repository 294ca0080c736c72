"""The part ``aws``: moto, the account in it, and the shim through which everybody calls it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sandbox.aws import account as accounts
from sandbox.aws import moto as moto_server
from sandbox.aws.client import Aws
from sandbox.aws.eks.clusters import admit_creator
from sandbox.aws.eventbridge import EventBridge
from sandbox.aws.interruptions import Interruptions
from sandbox.aws.shim import Shim
from sandbox.cloud.listening import Closers, bind
from sandbox.settings import Clock, Settings
from sandbox.state import SandboxError


@dataclass(frozen=True)
class RunningAws:
    """:ivar client: calls through the shim, signed with the account's own key."""

    moto: moto_server.Moto
    shim: Shim
    account: accounts.Account
    client: Aws
    interruptions: Interruptions


async def start_aws(settings: Settings, clock: Clock, port: int, closers: Closers) -> RunningAws:
    """
    :param port: of the shim.
    :param closers: gets what was started, also if a later step fails.
    :raises SandboxError: a problem that the user can fix.
    """
    try:
        moto = await moto_server.start(settings)
    except moto_server.MotoError as error:
        raise SandboxError(str(error)) from error
    closers.append(("moto", moto.close))
    direct = Aws(moto.url, settings.region)
    try:
        account = await accounts.prepare(direct, settings)
    finally:
        direct.close()
    shim = Shim(settings, clock, moto.url)
    await bind("aws", shim.start, port)
    closers.append(("shim", shim.close))
    admit_creator(shim.eks, settings, account)
    account = account.seen_at(moto.url, shim.url)
    client = Aws(shim.url, settings.region, account.access_key_id, account.secret_access_key)
    closers.append(("aws", client.close))
    events = EventBridge(settings, clock, moto)
    closers.append(("events", events.close))
    following = asyncio.create_task(events.follow(), name="eventbridge")
    closers.append(("eventbridge", following.cancel))
    queues = [settings.cluster_name, f"{settings.cluster_name}-gpu-fleet"]
    interruptions = Interruptions(settings, clock, client, moto, events, queues)
    closers.append(("interruptions", interruptions.close))
    return RunningAws(moto, shim, account, client, interruptions)
