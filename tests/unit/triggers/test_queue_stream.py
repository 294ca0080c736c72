"""The queue's stream when AWS does not do what it should."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from airflow.triggers.shared_stream import AdvanceItem, AdvanceOutcome

from gpu_fleet.core.errors import ApiUnavailable, Forbidden, GpuFleetError, Throttled
from gpu_fleet.hooks.aws import aws_session, forget_sessions
from gpu_fleet.hooks.aws.queue import VISIBILITY_S, SqsQueue
from gpu_fleet.triggers.queue_stream import CLOSING_S, MOST_BACKOFF_S, TRIES, QueueStream, backoff_s
from tests.unit.sandboxed import SandboxCloud, only_connections, sandbox_cloud
from tests.unit.triggers.interruption_world import CONNECTION, REGION, SPOT, Queue, event, new_instance, until

CLEAN, FAILED, REJECTED, NOBODY = (
    AdvanceOutcome(acked=1, failed=0),
    AdvanceOutcome(acked=1, failed=1),
    AdvanceOutcome(acked=1, failed=0, rejected=1),
    AdvanceOutcome(acked=0, failed=0),
)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(tmp_path_factory.mktemp("cloud")) as found:
        forget_sessions()
        only_connections(environment, **{CONNECTION: found.connection})
        yield found


@pytest.fixture
def queue(cloud: SandboxCloud) -> Iterator[Queue]:
    found = Queue(cloud)
    yield found
    cloud.settings.faults.clear()
    found.close()


class Troubled:
    """A session whose calls fail as told before they reach AWS.

    :ivar troubles: operation -> the errors of its next calls; an operation without any is carried out.
    :ivar hangs: operations that do not answer before :attr:`go` is set.
    """

    def __init__(self) -> None:
        self.hangs: set[str] = set()
        self.go = threading.Event()
        self.troubles: dict[str, list[GpuFleetError]] = {}
        self.calls: list[str] = []

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        self.calls.append(operation)
        if operation in self.hangs:
            self.go.wait(30)
        if waiting := self.troubles.get(operation):
            raise waiting.pop(0)
        return aws_session(CONNECTION, REGION).call(service, operation, **parameters)


@asynccontextmanager
async def reading(name: str, **troubles: list[GpuFleetError]) -> AsyncIterator[tuple[QueueStream, list[Any], Troubled]]:
    """A stream that is read in the background, its batches, and its session; back-off takes no time."""
    session = Troubled()
    session.troubles = troubles

    async def no_wait(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))

    stream = QueueStream(SqsQueue(session, name), sleep=no_wait)  # type: ignore[arg-type]
    batches: list[Any] = []

    async def read() -> None:
        async for item in stream.open_stream():
            batches.append(item)

    task = asyncio.create_task(read())
    try:
        yield stream, batches, session
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stream.aclose()


def throttled(times: int) -> list[GpuFleetError]:
    return [Throttled("sqs: Rate exceeded", reason="ThrottlingException") for _ in range(times)]


@pytest.mark.parametrize(
    "trouble",
    [
        throttled(3),
        [ApiUnavailable("sqs: Connection was closed before we received a valid response")] * 3,
        [Forbidden("sqs: not authorized", reason="AccessDenied")] * 3,
    ],
    ids=["throttled", "connection lost", "denied"],
)
async def test_what_ends_is_waited_for_and_said_once(
    queue: Queue, caplog: pytest.LogCaptureFixture, trouble: list[GpuFleetError]
) -> None:
    caplog.set_level(logging.INFO, "gpu_fleet.triggers.queue_stream")
    reason = trouble[0].reason
    async with reading(queue.name, receive_message=list(trouble)) as (_, batches, _):
        queue.send(event(SPOT, new_instance()))
        await until(lambda: bool(batches))
    said = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(said) == 1
    assert reason in said[0].getMessage()
    assert any("can be read again" in each.getMessage() for each in caplog.records)


async def test_a_queue_that_is_created_later_is_read_then(cloud: SandboxCloud) -> None:
    name = f"q-{uuid.uuid4().hex[:12]}"
    async with reading(name) as (stream, batches, session):
        await until(lambda: session.calls.count("get_queue_url") >= 3)
        assert "NonExistentQueue" in stream._trouble or "QueueDoesNotExist" in stream._trouble
        later = Queue(cloud)
        url = later.sqs.create_queue(QueueName=name)["QueueUrl"]
        later.sqs.send_message(QueueUrl=url, MessageBody=json.dumps(event(SPOT, new_instance())))
        await until(lambda: bool(batches))
        later.close()


async def test_a_denied_call_is_repeated_until_it_is_allowed(cloud: SandboxCloud, queue: Queue) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": ["sqs:ReceiveMessage"]})
    async with reading(queue.name) as (stream, batches, session):
        queue.send(event(SPOT, new_instance()))
        await until(lambda: session.calls.count("receive_message") >= 3)
        assert stream._trouble == "AccessDenied"
        cloud.settings.faults.clear()
        await until(lambda: bool(batches))


@pytest.mark.parametrize(("outcome", "left", "dead"), [(CLEAN, 0, 0), (FAILED, 1, 0), (NOBODY, 1, 0), (REJECTED, 0, 1)])
async def test_what_becomes_of_a_message(queue: Queue, outcome: AdvanceOutcome, left: int, dead: int) -> None:
    async with reading(queue.name) as (stream, batches, _):
        queue.send(event(SPOT, new_instance()))
        await until(lambda: bool(batches))
        await stream.advance([AdvanceItem(batches[0][1], outcome)])
        await asyncio.wait(stream._tasks) if stream._tasks else None
        assert (queue.left(), len(queue.dead_letters())) == (left, dead)
    if dead:
        assert queue.dead_letters()[0]["reason"] == "Rejected"


@pytest.mark.parametrize(("failures", "left"), [(1, 0), (TRIES - 1, 0), (TRIES, 1)])
async def test_a_throttled_delete_is_repeated_and_never_raises(queue: Queue, failures: int, left: int) -> None:
    async with reading(queue.name, delete_message_batch=throttled(failures)) as (stream, batches, _):
        queue.send(event(SPOT, new_instance()))
        await until(lambda: bool(batches))
        await stream.advance([AdvanceItem(batches[0][1], CLEAN)])
        await asyncio.wait(stream._tasks)
        assert queue.left() == left


async def test_a_dead_letter_queue_that_refuses_keeps_the_message(queue: Queue) -> None:
    denied: list[GpuFleetError] = [Forbidden("no", reason="AccessDenied") for _ in range(TRIES)]
    async with reading(queue.name, send_message=denied) as (stream, _, _):
        queue.send("not json")
        await until(lambda: stream.counts["malformed: NotJson"] == 1)
        await asyncio.wait(stream._tasks)
        assert queue.left() == 1
        assert queue.dead_letters() == []


async def test_a_message_comes_back_after_its_visibility_timeout(queue: Queue) -> None:
    """What moto hides for so long, SQS does, too; here the time is made to pass."""
    async with reading(queue.name) as (stream, batches, _):
        queue.send(event(SPOT, new_instance()))
        await until(lambda: bool(batches))
        await stream.advance([AdvanceItem(batches[0][1], FAILED)])
        assert VISIBILITY_S == 30
        stream._queue.release(batches[0][1].handles)
        await until(lambda: len(batches) == 2)
        assert batches[0][0]["notices"] == batches[1][0]["notices"]
        assert batches[1][1].messages[0].received == 2


async def test_closing_waits_for_nothing_that_hangs(queue: Queue) -> None:
    async with reading(queue.name) as (stream, batches, session):
        session.hangs |= {"change_message_visibility_batch", "delete_message_batch"}
        queue.send(event(SPOT, new_instance()), "not json")
        await until(lambda: bool(batches) and bool(stream._tasks))
        begun = time.monotonic()
    assert CLOSING_S <= time.monotonic() - begun < CLOSING_S + 1
    assert "change_message_visibility_batch" in session.calls
    session.go.set()


def test_the_back_off_grows_to_a_minute_and_is_never_none() -> None:
    assert all(0.25 <= backoff_s(0) <= 0.5 for _ in range(100))
    assert all(MOST_BACKOFF_S / 2 <= backoff_s(number) <= MOST_BACKOFF_S for number in (8, 20, 10_000))
