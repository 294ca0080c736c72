from __future__ import annotations

import pytest

from gpu_fleet.core.drain.answers import (
    BY_BUDGETS,
    DONE,
    FIRST_PAUSE_S,
    JITTER,
    LONGEST_PAUSE_S,
    LONGEST_SLOWDOWN_S,
    Answer,
    Word,
    pause_s,
    slowdown_s,
)


def test_pauses_begin_with_a_second_double_and_are_bounded() -> None:
    assert [pause_s(count, None, 0.0) for count in (1, 2, 3, 4, 50)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert pause_s(1, None, 1.0) == FIRST_PAUSE_S * (1 + JITTER)
    assert pause_s(9, None, 1.0) == LONGEST_PAUSE_S * (1 + JITTER)


def test_retry_after_is_obeyed_however_long_and_never_cut_short() -> None:
    assert pause_s(1, 10.0, 0.0) == 10.0
    assert pause_s(1, 60.0, 0.5) >= 60.0
    assert pause_s(3, 0.0, 0.0) == 4.0, "0 is what a server says that has no suggestion"


@pytest.mark.parametrize("word", Word)
def test_only_a_server_with_too_much_to_do_slows_the_whole_drain(word: Word) -> None:
    slow = slowdown_s(Answer(word, retry_after=3.0))
    assert slow == (3.0 if word is Word.OVERLOADED else 0.0)
    assert (word in DONE) + (word in BY_BUDGETS) <= 1


def test_a_slowdown_is_bounded_and_has_a_default() -> None:
    assert slowdown_s(Answer(Word.OVERLOADED)) == FIRST_PAUSE_S
    assert slowdown_s(Answer(Word.OVERLOADED, retry_after=600.0)) == LONGEST_SLOWDOWN_S
