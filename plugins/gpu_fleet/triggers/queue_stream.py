"""The queue of interruption messages as a shared stream of Airflow's triggerer, with acknowledgement.

One raw event is one batch of messages, so that a storm makes few events. A message is deleted only after the asset
events that the clusters made of it are stored in Airflow's database (Airflow 3.3.2 airflow/triggers/shared_stream.py).
Until then SQS hides it, and shows it again when nobody has deleted it: after a triggerer that died, for example. So
everything behind this stream meets the same message more than once.

A message that is no event of EventBridge goes to the dead-letter queue with the reason, one that is about no end of an
instance is deleted. Both are counted in the log, and no cluster hears of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.interruptions.messages import Irrelevant, Malformed, read_message
from gpu_fleet.hooks.aws import aws_session
from gpu_fleet.hooks.aws.queue import VISIBILITY_S, Message, SqsQueue, handles_of
from gpu_fleet.hooks.aws.threads import DaemonThreads

log = logging.getLogger(__name__)

#: Seconds between the first cluster's subscription and the first message. A triggerer starts its triggers one after the
#: other, and a cluster that subscribes after a message was handed out never sees it.
SETTLE_S = 1.0
#: Longest pause, in seconds, between attempts to read a queue that cannot be read.
MOST_BACKOFF_S = 60.0
#: Attempts to delete a batch, or to dead-letter a message. A message that stays is read again, which is harmless.
TRIES = 4
#: Seconds for what is done when the stream ends; a triggerer that stops must not wait for AWS.
CLOSING_S = 2.0


@dataclass(frozen=True, eq=False)
class Batch:
    """What has to be deleted once its events are stored; the broker's half of a raw event."""

    messages: tuple[Message, ...] = ()
    handles: tuple[str, ...] = field(default=())


class QueueStream(SharedStreamProducer):
    """
    :param queue: the queue to read.
    :param sleep: waits between attempts; injected by tests.
    :param settle_s: seconds before the first message is asked for.
    """

    def __init__(
        self,
        queue: SqsQueue,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        settle_s: float = 0.0,
    ) -> None:
        self._queue = queue
        self._sleep = sleep
        self._settle_s = settle_s
        # One that waits for messages, and two for what has to be done about them meanwhile.
        self._reader = DaemonThreads(f"gpu-fleet-queue-{queue.name}")
        self._writers = DaemonThreads(f"gpu-fleet-ack-{queue.name}", 2)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[Batch] = set()
        self._closed = False
        #: Why the queue cannot be read at the moment; empty while it can.
        self._trouble = ""
        self._failures = 0
        self.counts: Counter[str] = Counter()

    @classmethod
    def of(cls, aws_conn_id: str | None, region: str | None, queue: str) -> QueueStream:
        return cls(SqsQueue(aws_session(aws_conn_id, region), queue), settle_s=SETTLE_S)

    # --- reading -----------------------------------------------------------------------------------------------

    async def open_stream(self) -> AsyncIterator[tuple[dict[str, Any], Batch]]:
        """Batches, for ever: whatever is wrong with the queue may be cured while we wait.

        A raw event is ``{"read_at": epoch seconds, "notices": [{"notice": …, "sent": epoch seconds or None}]}``.
        """
        await self._sleep(self._settle_s)
        log.info("reading interruption messages from queue %s", self._queue.name)
        while True:
            messages = await self._receive()
            read_at = time.time()
            notices: list[dict[str, Any]] = []
            kept: list[Message] = []
            for message in messages:
                found = read_message(message.body)
                if isinstance(found, Malformed):
                    self._count(f"malformed: {found.reason}")
                    self._spawn(self._dead_letter(message, found.reason, found.message))
                elif isinstance(found, Irrelevant):
                    self._count("irrelevant")
                    self._spawn(self._delete((message.handle,)))
                else:
                    self._count("notices", len(found))
                    kept.append(message)
                    notices += [{"notice": notice.to_json(), "sent": message.sent} for notice in found]
            if kept:
                log.info(
                    "queue %s: %d messages, %d notices; so far %s",
                    self._queue.name,
                    len(messages),
                    len(notices),
                    ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items())),
                )
                batch = Batch(tuple(kept), handles_of(kept))
                self._open.add(batch)
                yield {"read_at": read_at, "notices": notices}, batch

    async def _receive(self) -> list[Message]:
        try:
            found = await self._reader.run(self._poll)
        except asyncio.CancelledError:
            self._closed = True  # the long poll goes on in its thread
            raise
        except Exception as error:  # noqa: BLE001  (whatever it is, the next attempt may succeed)
            await self._failed(error)
            return []
        if self._trouble:
            log.info("queue %s can be read again", self._queue.name)
        self._trouble, self._failures = "", 0
        return found

    def _poll(self) -> list[Message]:
        """In the thread. What arrives after the stream was closed has no reader: show it to others at once."""
        found = self._queue.receive()
        if found and self._closed:
            with contextlib.suppress(GpuFleetError):
                self._queue.release(handles_of(found))
            return []
        return found

    async def _failed(self, error: Exception) -> None:
        """Says so once per kind of failure, and waits: longer each time, with jitter."""
        reason = error.reason if isinstance(error, GpuFleetError) else type(error).__name__
        if reason != self._trouble:
            text = error.message if isinstance(error, GpuFleetError) else repr(error)
            log.warning(
                "queue %s cannot be read (%s): %s; interruptions are not seen until it can, and the attempts continue",
                self._queue.name,
                reason,
                text,
            )
        self._trouble = reason
        await self._sleep(backoff_s(self._failures))
        self._failures += 1

    def _count(self, what: str, number: int = 1) -> None:
        self.counts[what] += number

    # --- acknowledging -----------------------------------------------------------------------------------------

    def get_advance_lane(self, broker_payload: Batch) -> Batch:
        """A lane per batch: SQS has no order to keep, so no batch has to wait for an earlier one."""
        return broker_payload

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Delete what every cluster has moved past and whose events are stored.

        What failed stays, and SQS shows it again. What a cluster refused goes to the dead-letter queue. Never raises:
        that would end the stream for every cluster, for a message that is merely read once more.
        """
        for item in batch:
            found: Batch = item.broker_payload
            self._open.discard(found)
            if item.outcome.rejected:
                for message in found.messages:
                    self._count("malformed: Rejected")
                    self._spawn(self._dead_letter(message, "Rejected", "a cluster's trigger refused the message"))
            elif item.outcome.is_clean:
                self._spawn(self._delete(found.handles))
            else:
                log.warning(
                    "queue %s: %d messages were not handled to the end; they are read again after %d s",
                    self._queue.name,
                    len(found.messages),
                    VISIBILITY_S,
                )

    async def _delete(self, handles: Sequence[str]) -> None:
        left = list(handles)

        def work() -> None:
            nonlocal left
            left = self._queue.delete(left)
            if left:
                raise GpuFleetError(f"{len(left)} messages could not be deleted", reason="DeleteFailed")

        await self._persist(work, "delete messages")

    async def _dead_letter(self, message: Message, reason: str, error: str) -> None:
        def work() -> None:
            if self._queue.dead_letter(message, reason, error):
                log.warning("message %s went to the dead-letter queue: %s: %s", message.id, reason, error)
            else:
                log.warning(
                    "message %s was deleted, as queue %s has no dead-letter queue: %s: %s",
                    message.id,
                    self._queue.name,
                    reason,
                    error,
                )

        await self._persist(work, f"dead-letter message {message.id}")

    async def _persist(self, work: Callable[[], None], what: str) -> None:
        """A few attempts; what does not succeed is read again."""
        for attempt in range(TRIES):
            try:
                await self._writers.run(work)
                return
            except Exception as error:  # noqa: BLE001  (as above)
                problem = error.message if isinstance(error, GpuFleetError) else repr(error)
            await self._sleep(backoff_s(attempt))
        log.warning("queue %s: could not %s: %s; read again later", self._queue.name, what, problem)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- closing -----------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Finish what was begun, hand back what nobody has acknowledged, and leave; at most :data:`CLOSING_S`."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                left = [handle for batch in self._open for handle in batch.handles]
                if left:
                    with contextlib.suppress(Exception):
                        await self._writers.run(partial(self._queue.release, left))
                if self._tasks:
                    await asyncio.wait(self._tasks)
        for task in list(self._tasks):
            task.cancel()
        self._reader.close()
        self._writers.close()


def backoff_s(failures: int) -> float:
    """Seconds before the next attempt: 0.5, 1, 2, … at most :data:`MOST_BACKOFF_S`, with half of it random."""
    full = min(MOST_BACKOFF_S, 0.5 * float(2 ** min(failures, 10)))
    return full * (0.5 + random.random() / 2)  # noqa: S311  (jitter, not a secret)
