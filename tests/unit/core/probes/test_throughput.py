"""Reports of throughput are believed only if they can be true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_fleet.core.probes.message import MESSAGE_LIMIT, ProbeOutputError
from gpu_fleet.core.probes.throughput import parse_throughput
from tests.unit.core.cluster_objects import NOW
from tests.unit.core.throughput_objects import WORK, report


def windows(**changes: Any) -> str:
    value = json.loads(report())
    value["windows"] |= changes
    return json.dumps(value)


def gpu(**changes: Any) -> str:
    return report(gpu=changes)


def without(*path: str) -> str:
    value = json.loads(report())
    target = value
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]
    return json.dumps(value)


def test_a_report_is_read() -> None:
    found = parse_throughput(report())
    assert found.gpu is not None
    assert (found.gpu.multiprocessors, found.gpu.board_memory_mib) == (72, 23028)
    assert (found.begin, found.end, found.width, len(found.counts)) == (NOW - 60, NOW - 30, 0.2, 150)
    assert found.rate() == pytest.approx(50 * WORK)
    assert found.figures() == {"driver": "570.133.20", "cuda": "12.8", "gpu": "NVIDIA A10G"}


def test_a_rate_is_that_of_whole_windows_within_the_time() -> None:
    found = parse_throughput(report(per_window=10, alone_from=20, alone_per_window=40))
    assert found.rate(None, NOW - 40) == pytest.approx(50 * WORK)
    assert found.rate(NOW - 40, None) == pytest.approx(200 * WORK)
    assert found.rate(NOW - 30.5, None) is None, "two windows are too few to tell"
    assert found.rate(NOW, None) is None
    assert found.rate(NOW - 35, NOW - 55) is None


def test_windows_are_placed_by_the_nodes_clock_and_rates_taken_by_the_other() -> None:
    found = parse_throughput(report(seconds=30, clock=0.1, per_window=10, alone_from=20, alone_per_window=40))
    assert found.end == NOW - 57
    assert found.rate(NOW - 58, None) == pytest.approx(200 * WORK)


def test_a_probe_that_gave_up_says_why() -> None:
    found = parse_throughput(report(error=("WrongResult", "3 threads"), gpu=None))
    assert found.error is not None
    assert found.error.reason == "WrongResult"
    assert found.rate() is None
    early = parse_throughput(report(error=("NoDriverLibrary", "x")).replace('"gpu":{', '"gpu":null,"was":{'))
    assert early.gpu is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "NoOutput"),
        (" \n", "NoOutput"),
        ("Traceback (most recent call last):", "OutputNotJson"),
        ("{" * 3000, "OutputNotJson"),
        ("x" * (MESSAGE_LIMIT + 1), "OutputTooLarge"),
        ('{"padding":"' + "x" * (MESSAGE_LIMIT - 12), "OutputTooLarge"),
        ("[]", "OutputOfOtherSchema"),
        ("null", "OutputOfOtherSchema"),
        ("7", "OutputOfOtherSchema"),
        ('{"schema":"gpu-fleet.io/probe/v1"}', "OutputOfOtherSchema"),
        ('{"schema":["x"]}', "OutputOfOtherSchema"),
        (without("work"), "OutputOfOtherSchema"),
        (without("windows", "counts"), "OutputOfOtherSchema"),
        (without("gpu", "uuid"), "OutputOfOtherSchema"),
        (report(gpu=None, verified="yes"), "OutputOfOtherSchema"),
        (report(windows=None), "OutputOfOtherSchema"),
        (report(windows=7), "OutputOfOtherSchema"),
        (report(driver=570), "OutputOfOtherSchema"),
        (windows(counts="many"), "OutputOfOtherSchema"),
        (windows(counts=[1.5]), "OutputOfOtherSchema"),
        (windows(counts=[True]), "OutputOfOtherSchema"),
        (windows(width="wide"), "OutputOfOtherSchema"),
        (windows(width=None), "OutputOfOtherSchema"),
        (windows(counts=[]), "AbsurdFigures"),
        (windows(counts=[-1] * 150), "AbsurdFigures"),
        (windows(counts=[10**9] * 150), "AbsurdFigures"),
        (windows(counts=[10**30] * 10), "AbsurdFigures"),
        (windows(width=0), "AbsurdFigures"),
        (windows(width=-5), "AbsurdFigures"),
        (windows(width=10**400), "AbsurdFigures"),
        (report().replace('"width":200.0', '"width":NaN'), "AbsurdFigures"),
        (report().replace('"width":200.0', '"width":Infinity'), "AbsurdFigures"),
        (windows(elapsed=0), "AbsurdFigures"),
        (windows(elapsed=-1), "AbsurdFigures"),
        (windows(elapsed=10**7), "AbsurdFigures"),
        (windows(**{"from": int((NOW + 3600) * 1000)}), "AbsurdFigures"),
        (windows(**{"from": 5}), "AbsurdFigures"),
        (windows(**{"from": -(10**30)}), "AbsurdFigures"),
        (report(startedAt=0), "AbsurdFigures"),
        (report(finishedAt=int((NOW - 600) * 1000)), "AbsurdFigures"),
        (report(work=0), "AbsurdFigures"),
        (report(work=-5), "AbsurdFigures"),
        (report(verified=False), "AbsurdFigures"),
        (gpu(uuid="GPU-1"), "AbsurdFigures"),
        (gpu(memoryTotalMiB=-1), "AbsurdFigures"),
        (gpu(memoryTotalMiB=10**9), "AbsurdFigures"),
        (gpu(memoryFreeMiB=23000), "AbsurdFigures"),
        (gpu(multiprocessors=0), "AbsurdFigures"),
        (gpu(boardMemoryMiB=-7), "AbsurdFigures"),
    ],
)
def test_what_cannot_be_believed_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ProbeOutputError) as caught:
        parse_throughput(text)
    assert caught.value.reason == reason
    assert len(caught.value.message) < 300


def test_too_many_digits_are_no_crash() -> None:
    with pytest.raises(ProbeOutputError) as caught:
        parse_throughput('{"schema":"gpu-fleet.io/throughput/v1","work":' + "9" * 4000 + "}")
    assert caught.value.reason in ("OutputNotJson", "OutputOfOtherSchema")
