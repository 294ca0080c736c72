from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from gpu_fleet.operators.draining.executor import Executor


def test_results_come_in_the_order_of_their_items() -> None:
    with Executor(4) as executor:
        assert executor.each(lambda item: item * 2, range(20)) == [item * 2 for item in range(20)]


def test_a_failure_is_raised_once_all_have_ended() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            raise RuntimeError("the first")
        done.append(item)

    with Executor(2) as executor, pytest.raises(RuntimeError, match="the first"):
        executor.each(work, range(10))
    assert sorted(done) == list(range(1, 10))


def test_nothing_begins_during_a_pause() -> None:
    begun = threading.Event()
    with Executor(2) as executor:
        executor.slow_down(0.4)
        future = executor.submit(begun.set)
        assert not begun.wait(0.2)
        assert begun.wait(2)
        future.result()


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = [100.0]
    executor = Executor(1, monotonic=lambda: clock[0])
    executor.slow_down(60.0)
    executor.slow_down(1.0)
    begun = threading.Event()
    future = executor.submit(begun.set)
    clock[0] += 30.0
    assert not begun.wait(0.2)
    executor.close()
    with pytest.raises(CancelledError):
        future.result()
    assert not begun.is_set(), "what has not begun when it is closed never does"
