"""Blocking work in threads apart: what hangs in one lane is waited for in no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from gpu_fleet.hooks import lanes


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """Work that waits for this hangs; set at the end, so that its threads end."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_lane_that_hangs_altogether_holds_up_no_other(hang: threading.Event) -> None:
    stuck = [asyncio.create_task(lanes.shared("a", key, hang.wait, within=60)) for key in range(3 * lanes.WORKERS)]
    assert await lanes.shared("b", "x", lambda: "done", within=10) == "done"
    assert not any(task.done() for task in stuck)
    hang.set()
    assert await asyncio.gather(*stuck) == [True] * len(stuck)


async def test_the_same_work_is_under_way_once_for_all_who_ask(hang: threading.Event) -> None:
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        hang.wait()
        return "found"

    asked = [asyncio.create_task(lanes.shared("a", "k", work, within=60)) for _ in range(50)]
    await asyncio.sleep(0)
    asked[0].cancel()  # who leaves takes nothing from the others
    hang.set()
    assert await asyncio.gather(*asked[1:]) == ["found"] * 49
    assert len(calls) == 1
    assert await lanes.shared("a", "k", work, within=10) == "found"
    assert len(calls) == 2, "what was found is not kept"


async def test_patience_ends_and_who_asks_again_waits_for_the_same_call(hang: threading.Event) -> None:
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        hang.wait()
        return "late"

    with pytest.raises(TimeoutError):
        await lanes.shared("a", "k", work, within=0.05)
    again = asyncio.create_task(lanes.shared("a", "k", work, within=60))
    await asyncio.sleep(0)
    hang.set()
    assert await again == "late"
    assert len(calls) == 1


async def test_what_nobody_waits_for_any_more_is_not_begun(hang: threading.Event) -> None:
    for key in range(lanes.WORKERS):
        with pytest.raises(TimeoutError):
            await lanes.shared("full", key, hang.wait, within=0.01)
    begun: list[int] = []
    with pytest.raises(TimeoutError):
        await lanes.shared("full", "queued", lambda: begun.append(1), within=0.05)
    hang.set()
    assert await lanes.shared("full", "last", lambda: "after it", within=10) == "after it"
    assert begun == []


async def test_an_error_reaches_all_who_wait(hang: threading.Event) -> None:
    def work() -> None:
        hang.wait()
        raise ValueError("no")

    asked = [asyncio.create_task(lanes.shared("a", "k", work, within=60)) for _ in range(3)]
    await asyncio.sleep(0)
    hang.set()
    assert [type(found) for found in await asyncio.gather(*asked, return_exceptions=True)] == [ValueError] * 3


def test_a_loop_that_has_ended_is_not_called_back(hang: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await lanes.shared("a", "k", hang.wait, within=0.01)

    asyncio.run(give_up())
    hang.set()

    async def again() -> str:
        return await lanes.shared("a", "other", lambda: "fine", within=10)

    assert asyncio.run(again()) == "fine"
    assert "exception calling callback" not in caplog.text
