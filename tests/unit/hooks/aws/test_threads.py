from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from gpu_fleet.hooks.aws.threads import DaemonThreads

PLUGINS = Path(__file__).resolve().parents[4] / "plugins"


def named(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(name)]


async def gone(name: str) -> None:
    deadline = time.monotonic() + 5
    while named(name):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_results_and_errors_come_back() -> None:
    threads = DaemonThreads("t-results", 2)
    assert await asyncio.gather(*(threads.run(partial(pow, n, 2)) for n in range(20))) == [n * n for n in range(20)]
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert len(named("t-results")) == 2
    threads.close()
    await gone("t-results")


async def test_a_caller_that_leaves_does_not_wait_and_the_work_goes_on() -> None:
    threads, go, done = DaemonThreads("t-leaves"), threading.Event(), threading.Event()

    def work() -> None:
        go.wait(5)
        done.set()

    task = asyncio.create_task(threads.run(work))
    await asyncio.sleep(0.05)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    threads.close()
    threads.close()
    assert time.monotonic() - begun < 0.5
    with pytest.raises(RuntimeError, match="closed"):
        await threads.run(work)
    go.set()
    await gone("t-leaves")
    assert done.is_set()


async def test_what_was_cancelled_in_the_queue_is_not_begun() -> None:
    threads, go, ran = DaemonThreads("t-queued"), threading.Event(), []
    first = asyncio.create_task(threads.run(lambda: go.wait(5)))
    second = asyncio.create_task(threads.run(lambda: ran.append(1)))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.sleep(0)
    go.set()
    await first
    assert await threads.run(lambda: 7) == 7
    assert ran == []
    threads.close()
    await gone("t-queued")


def test_the_interpreter_does_not_wait_for_them() -> None:
    code = """
import asyncio, time
from gpu_fleet.hooks.aws.threads import DaemonThreads
async def main():
    asyncio.create_task(DaemonThreads("t").run(lambda: time.sleep(30)))
    await asyncio.sleep(0.2)
asyncio.run(main())
"""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(PLUGINS)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=25, env=environment)
    assert time.monotonic() - begun < 20
