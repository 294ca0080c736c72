from __future__ import annotations

from datetime import timedelta

import pytest

from gpu_fleet.core.spec import Duration, DurationOrNever, Seconds, version_tuple


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("720h", 2_592_000), ("1h30m", 5400), ("0s", 0), ("1h1m1s", 3661)]
)
def test_a_duration_keeps_its_text_and_knows_its_length(text: str, seconds: int) -> None:
    assert Duration.parse(text) == text
    assert Duration.parse(text).seconds == seconds
    assert Duration.parse(text).timedelta == timedelta(seconds=seconds)
    assert Seconds.parse(text) == seconds


@pytest.mark.parametrize(
    ("text", "remedy"),
    [("1d", "write 24h"), ("30d", "write 720h"), ("10", "for example"), ("", "for example"), ("5 m", "for example"),
     ("-5m", "for example"), ("1.5h", "for example"), ("Never", "for example"), ("5M", "for example")],
)  # fmt: skip
def test_what_karpenter_would_refuse_is_refused_with_a_remedy(text: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        Duration.parse(text)


def test_never_is_a_duration_only_where_karpenter_takes_it() -> None:
    assert DurationOrNever.parse("Never").never
    assert not DurationOrNever.parse("5m").never
    with pytest.raises(ValueError, match="write 24h"):
        DurationOrNever.parse("1d")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (90, "90s"), (3600, "1h"), (5400, "90m")]
)
def test_seconds_are_written_with_the_largest_whole_unit(seconds: int, text: str) -> None:
    assert Seconds(seconds).text == text
    assert Seconds.parse(text) == seconds


@pytest.mark.parametrize(
    ("version", "parts"),
    [("1.14.1", (1, 14, 1)), ("v0.20.0", (0, 20, 0)), ("1.9.0-rc.1", (1, 9, 0)), ("1.0.5+x", (1, 0, 5))],
)
def test_versions_compare_by_number(version: str, parts: tuple[int, ...]) -> None:
    assert version_tuple(version) == parts
