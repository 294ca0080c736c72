"""The verdict on throughput: one starved, all too slow, one slow GPU, limits of MPS; and no false alarm."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from gpu_fleet.core.probes.plan import NodeRound, Probe
from gpu_fleet.core.validation.evidence import NodeEvidence, evidence_of
from gpu_fleet.core.validation.facts import Promise, node_facts
from gpu_fleet.core.validation.judge import judge_node
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome
from tests.unit.core import probe_objects as probes
from tests.unit.core.cluster_objects import NOW, node, plugin_pod
from tests.unit.core.probe_objects import NODE, OTHER_UUID, UUID
from tests.unit.core.throughput_objects import report

TIME_SLICING = Promise(labels={}, taints=[], mps=False, plugin=True)
MPS = Promise(labels={}, taints=[], mps=True, plugin=True)
DAEMON = plugin_pod(NODE, owner="nvidia-device-plugin-mps-control-daemon")
Texts = list[str]


def evidence(
    texts: Texts, *, physical: int = 1, replicas: int = 4, promise: Promise = TIME_SLICING, held: int = 0
) -> NodeEvidence:
    """Every text is the report of one probe that ran from 61 s ago until just now."""
    pods = [
        probes.ended(index, started=61.0, finished=1.0, text=text, scheduled=62.0) for index, text in enumerate(texts)
    ]
    for pod in pods:
        pod["metadata"]["creationTimestamp"] = probes.stamp(NOW - 63)
    return evidence_of(
        Probe.THROUGHPUT,
        NodeRound(NODE, users=len(pods), fill=len(pods), greedy=False, held=held),
        node_facts(NODE, node(NODE, gpus=physical * replicas), pods=[plugin_pod(NODE), DAEMON], runtime_class=True),
        promise,
        pods,
        [],
        physical=physical,
        replicas=replicas,
        now=NOW,
    )


def sharers(
    *per_window: float, alone: float = 40.0, skew: float = 1.0, uuid: str = UUID, gpu: dict[str, Any] | None = None
) -> Texts:
    """The first one computes for 58 s, the others for 25; each began ``skew`` seconds after the one before."""
    rest = [
        report(begin=NOW - 60 + index * skew, seconds=25, per_window=rate, uuid=uuid, gpu=gpu)
        for index, rate in enumerate(per_window[1:], 1)
    ]
    ends = 25 + skew * (len(per_window) - 1) if rest else 0.0
    first = report(seconds=58, per_window=per_window[0], alone_from=ends, alone_per_window=alone, uuid=uuid, gpu=gpu)
    return [first, *rest]


def judged(texts: Texts, **kwargs: Any) -> NodeReport:
    return judge_node(Probe.THROUGHPUT, evidence(texts, **kwargs))


def check(report: NodeReport, name: str) -> Check:
    return next(found for found in report.checks if found.name == name)


def limited(share: int = 4, **changes: Any) -> dict[str, Any]:
    return {"memoryFreeMiB": 23028 // share - 140, "multiprocessors": 18} | changes


def test_four_sharers_that_lose_little_and_share_alike() -> None:
    report = judged(sharers(10, 10, 9, 10))
    assert report.outcome is Outcome.PASSED, report.cause
    total = check(report, "throughput")
    assert total.reason == "LittleLost"
    assert total.figures["ratio"] == pytest.approx(0.975, abs=0.01)
    assert total.figures["aloneGflops"] > total.figures["togetherGflops"][UUID] > 0
    assert check(report, "memory").reason == "NotIsolated"
    assert "time-slicing isolates none" in check(report, "memory").message
    assert check(report, "gpus").outcome is Outcome.SKIPPED


def test_two_gpus_shared_by_two_are_compared_with_the_one_that_ran_alone() -> None:
    texts = [
        *sharers(20, 20),
        *sharers(19, 20, uuid=OTHER_UUID, alone=20)[1:],
        report(seconds=25, per_window=19, uuid=OTHER_UUID),
    ]
    found = judged(texts, physical=2, replicas=2)
    assert found.outcome is Outcome.PASSED, found.cause
    assert set(check(found, "throughput").figures["togetherGflops"]) == {UUID, OTHER_UUID}


def test_mps_clients_keep_what_their_limit_gives_them_alone_and_together() -> None:
    report = judged(sharers(10, 10, 10, 10, alone=10, gpu=limited()), promise=MPS)
    assert report.outcome is Outcome.PASSED, report.cause
    assert check(report, "memory").reason == "Limited"
    assert check(report, "throughput").figures["ratio"] == pytest.approx(1.0)


def test_whole_gpus_alike() -> None:
    uuids = [f"GPU-0000000{index}-1111-2222-3333-444444444444" for index in range(8)]
    texts = [report(uuid=uuid, seconds=10, per_window=39 + index % 3) for index, uuid in enumerate(uuids)]
    found = judged(texts, physical=8, replicas=1)
    assert found.outcome is Outcome.PASSED, found.cause
    assert check(found, "gpus").reason == "GpusAlike"
    assert len(check(found, "gpus").figures["gflops"]) == 8


def test_one_whole_gpu_has_nothing_to_be_compared_with() -> None:
    found = judged([report(seconds=10)], physical=1, replicas=1)
    assert found.outcome is Outcome.PASSED
    assert "nothing to compare with" in check(found, "gpus").message


@pytest.mark.parametrize(
    ("texts", "held"),
    [
        ([report(seconds=25)], 3),
        # Whoever shares the GPU may be what starves a probe, or slows all of them down.
        (sharers(13, 13, 1), 1),
        (sharers(2, 2, 2), 1),
        (sharers(0, 0, 0), 1),
    ],
)
def test_beside_others_speed_is_measured_and_not_judged(texts: Texts, held: int) -> None:
    found = judged(texts, held=held)
    assert found.outcome is Outcome.BUSY
    assert check(found, "fairness").reason == "PartlyBusy"
    assert "GFLOP/s" in check(found, "fairness").message
    assert check(found, "throughput").outcome is Outcome.SKIPPED
    assert check(found, "memory").outcome is Outcome.PASSED


def shifted(text: str) -> str:
    """By an hour, as by a clock that is not the cluster's."""
    value = json.loads(text)
    for where, key in ((value, "startedAt"), (value, "finishedAt"), (value["windows"], "from")):
        where[key] += 3_600_000
    return json.dumps(value)


DEFECTS: dict[str, tuple[NodeReport, str, str]] = {
    "one sharer starved": (judged(sharers(13, 13, 1, 13)), "fairness", "SharerStarved"),
    "the one that goes on alone starved": (judged(sharers(2, 13, 13, 12)), "fairness", "SharerStarved"),
    "one sharer got nothing": (judged(sharers(13, 13, 0, 13)), "fairness", "SharerStarved"),
    "all got nothing": (judged(sharers(0, 0, 0, 0)), "fairness", "NothingComputed"),
    "starved on the second GPU": (
        judged([*sharers(20, 20), *(report(seconds=25, per_window=n, uuid=OTHER_UUID) for n in (38, 2))],
               physical=2, replicas=2),
        "fairness",
        "SharerStarved",
    ),
    "half is lost": (judged(sharers(5, 5, 5, 5)), "throughput", "ThroughputTooLow"),
    "MPS without limit of memory": (
        judged(sharers(10, 10, 10, 10, alone=10), promise=MPS), "memory", "MpsLimitMissing",
    ),
    "MPS without limit of memory, and without nvidia-smi": (
        judged(sharers(10, 10, 10, 10, alone=10, gpu={"boardMemoryMiB": None}), promise=MPS), "memory",
        "MpsLimitMissing",
    ),
    "MPS without limit of threads": (
        judged(sharers(10, 10, 10, 10, alone=40, gpu=limited()), promise=MPS), "throughput", "MpsLimitMissing",
    ),
    "a slow GPU": (
        judged([report(uuid=UUID[:-1] + str(i), seconds=10, per_window=20 if i == 2 else 40) for i in range(4)],
               physical=4, replicas=1),
        "gpus",
        "GpuSlow",
    ),
    "no GPU computes": (
        judged([report(uuid=UUID[:-1] + str(i), seconds=10, per_window=0) for i in range(4)], physical=4, replicas=1),
        "gpus",
        "NothingComputed",
    ),
    "wrong results": (
        judged([*sharers(10, 10, 10), report(error=("WrongResult", "3 threads"))]), "probes", "WrongResult",
    ),
    "no driver library": (judged([report(error=("NoDriverLibrary", "x"))] * 4), "probes", "NoDriverLibrary"),
    "garbage": (judged([*sharers(10, 10, 10), "Segmentation fault"]), "probes", "OutputNotJson"),
    "huge": (judged([*sharers(10, 10, 10), "x" * 70_000]), "probes", "OutputTooLarge"),
    "negative": (
        judged([*sharers(10, 10, 10), report(per_window=-3)]), "probes", "AbsurdFigures",
    ),
    "another clock": (judged([*sharers(10, 10, 10), shifted(report(seconds=25))]), "clock", "ClockSkew"),
}  # fmt: skip


@pytest.mark.parametrize("situation", DEFECTS)
def test_a_defect_has_its_own_reason_and_no_other(situation: str) -> None:
    found, name, reason = DEFECTS[situation]
    assert [(c.name, c.reason) for c in found.checks if c.outcome is Outcome.FAILED] == [(name, reason)]
    assert found.outcome is Outcome.FAILED


def test_a_starved_sharer_is_named_with_its_share() -> None:
    cause = DEFECTS["one sharer starved"][0].cause
    assert cause is not None
    assert "pod sharing-user-2 got 2 %" in cause.message
    assert "fair share among 4 is 25 %" in cause.message
    assert cause.figures["pod"] == "sharing-user-2"


@pytest.mark.parametrize(
    ("texts", "name", "reason"),
    [
        ([report(seconds=25), report(begin=NOW - 35.5, seconds=25)], "fairness", "TooLittleOverlap"),
        ([report(seconds=20), report(begin=NOW - 35, seconds=25)], "fairness", "TooLittleOverlap"),
        ([report(seconds=25) for _ in range(4)], "throughput", "NoTimeAlone"),
    ],
)
def test_doubt_is_never_a_pass(texts: Texts, name: str, reason: str) -> None:
    found = judged(texts)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert check(found, name).reason == reason


def test_tolerances_are_the_specs() -> None:
    strict = Promise(labels={}, taints=[], mps=False, plugin=True, minimum_total=0.99, tolerance=0.02)
    assert judged(sharers(10, 10, 9, 10), promise=strict).outcome is Outcome.FAILED
    lax = Promise(labels={}, taints=[], mps=False, plugin=True, minimum_total=0.2, tolerance=0.95)
    assert judged(sharers(13, 13, 1, 13, alone=60), promise=lax).outcome is Outcome.PASSED


@pytest.mark.parametrize("seed", range(50))
def test_healthy_sharers_with_noise_raise_no_alarm(seed: int) -> None:
    noise = random.Random(seed)
    count = noise.randint(2, 8)
    rates = [40 / count * noise.uniform(0.9, 1.0) for _ in range(count)]
    # Rounded to whole launches, as counted.
    found = judged(sharers(*(max(1, round(rate)) for rate in rates), skew=noise.uniform(0, 2)), replicas=count)
    assert found.outcome is Outcome.PASSED, found.cause
