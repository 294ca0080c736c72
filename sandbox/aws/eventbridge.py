"""EventBridge: events go where the account's rules and targets say, each at least once, in no order.

Delivery has faults, all of which the real service may show (docs.aws.amazon.com/eventbridge/latest/userguide,
'Event retry policy', and SQS 'at-least-once delivery'). All take ``queue`` and ``detailType``, which limit them:

* ``events-duplicated`` with ``{"times": 3}``: each message is sent so many times;
* ``events-delayed`` with ``{"seconds": 10}``: simulated seconds until it is sent;
* ``events-shuffled`` with ``{"seconds": 10}``: each message is sent at a random moment of so many simulated seconds;
* ``events-lost``: it is not sent at all. With ``--count`` so many messages are lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import defaultdict
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import aiohttp

from sandbox.aws.moto import Moto
from sandbox.aws.notices import Kind, message
from sandbox.settings import Clock, Settings

log = logging.getLogger("sandbox.aws")
Object = dict[str, Any]
DUPLICATED, DELAYED, SHUFFLED, LOST = "events-duplicated", "events-delayed", "events-shuffled", "events-lost"
#: Real seconds of one look for changes of state, and the pause after a failed one.
_LOOK, _RETRY = 1.0, 0.5


class EventBridge:
    """
    :param moto: which has the rules, the targets and the queues.
    :param zone_of: the availability zone of an instance.
    """

    def __init__(self, settings: Settings, clock: Clock, moto: Moto) -> None:
        self._settings = settings
        self._clock = clock
        self._moto = moto
        self._random = random.Random(f"{settings.seed}:events")
        self._later: set[asyncio.Task[None]] = set()

    async def publish(self, events: list[Object], times: int = 1) -> int:
        """Events of AWS's services; how many messages they become. Those that a fault delays are sent later.

        :param times: how often each is delivered, with the same id, as EventBridge may do.
        """
        messages: list[tuple[str, str, str]] = []
        for event, targets in zip(events, await self._moto.match(events), strict=True):
            for target in targets:
                if target["refused"]:
                    log.warning("EventBridge: rule %s, %s: %s", target["rule"], target["queue"], target["refused"])
                    continue
                messages += [(target["queue"], event["detail-type"], json.dumps(event))] * times
        return await self._deliver(messages)

    async def place(self, bodies: list[str], queues: list[str], times: int = 1) -> int:
        """Texts that no rule would send, for example because they are no events: into these queues."""
        return await self._deliver([(queue, "", body) for queue in queues for body in bodies for _ in range(times)])

    async def follow(self) -> None:
        """Publish instances' changes of state, from now on until cancelled."""
        following = 1 + max((each["number"] for each in await self._moto.transitions(0)), default=0)
        while True:
            try:
                changes = await self._moto.transitions(following, _LOOK)
                await self.publish([self._state_change(each) for each in changes])
                following = max((each["number"] + 1 for each in changes), default=following)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                log.warning("EventBridge: changes of instances' state: %s", error)
                await asyncio.sleep(_RETRY)

    async def close(self) -> None:
        """Messages that were to be sent later are not sent."""
        for task in list(self._later):
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)

    def _state_change(self, change: Object) -> Object:
        moment = datetime.fromtimestamp(change["time"], UTC)
        return message(Kind.STATE, change["instance"], "", self._settings, moment, state=change["state"])

    async def _deliver(self, messages: list[tuple[str, str, str]]) -> int:
        batches: dict[float, list[Object]] = defaultdict(list)
        sent = 0
        for queue, detail_type, body in messages:
            for delay in self._moments(queue, detail_type):
                batches[delay].append({"queue": queue, "body": body})
                sent += 1
        now = batches.pop(0.0, [])
        for delay, batch in batches.items():
            self._keep(self._after(delay, batch))
        if now:
            await self._moto.send(now)
        return sent

    def _moments(self, queue: str, detail_type: str) -> list[float]:
        """When a message is sent, in real seconds from now; once for each time."""

        def meant(params: Object) -> bool:
            return bool(params.get("queue", queue) == queue and params.get("detailType", detail_type) == detail_type)

        faults = self._settings.faults
        lost = faults.active(LOST)
        if lost is not None and meant(lost):
            faults.take(LOST)
            return []
        times = max((int(each.get("times", 2)) for each in faults.each(DUPLICATED) if meant(each)), default=1)
        delay = sum(float(each["seconds"]) for each in faults.each(DELAYED) if meant(each))
        spread = sum(float(each["seconds"]) for each in faults.each(SHUFFLED) if meant(each))
        return [self._clock.real(delay + self._random.uniform(0, spread)) for _ in range(times)]

    async def _after(self, seconds: float, batch: list[Object]) -> None:
        await asyncio.sleep(seconds)
        await self._moto.send(batch)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)
