"""What the probe programs wrote on a real GPU (``bench/gpu.py``: one H200, driver 580), read and judged as a run does.

The reports are as they were written, but for the GPU's UUID.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.probes.gpu import parse_output
from gpu_fleet.core.probes.plan import NodeRound, Probe
from gpu_fleet.core.probes.throughput import parse_throughput
from gpu_fleet.core.validation.evidence import NodeEvidence, evidence_of
from gpu_fleet.core.validation.facts import Promise, node_facts
from gpu_fleet.core.validation.judge import judge_node
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome
from tests.unit.core import probe_objects as probes
from tests.unit.core.cluster_objects import NOW, node, plugin_pod
from tests.unit.core.probe_objects import NODE, UUID

RECORDED = json.loads((Path(__file__).parent / "recorded" / "h200.json").read_text())
DAEMON = plugin_pod(NODE, owner="nvidia-device-plugin-mps-control-daemon")


def messages(scenario: str) -> list[str]:
    return [result["message"] for result in RECORDED[scenario] if result["message"]]


def pods(scenario: str) -> list[dict[str, Any]]:
    """The pods of a scenario, which ended just now: the reports' times are moved to the tests' present."""
    reports = [json.loads(text) for text in messages(scenario)]
    moved = int((NOW - 1) * 1000) - max(report["finishedAt"] for report in reports)
    found = []
    for index, (report, result) in enumerate(zip(reports, RECORDED[scenario], strict=False)):
        for name in ("startedAt", "finishedAt"):
            report[name] += moved
        if report.get("windows"):
            report["windows"]["from"] += moved
        began, ended = NOW - report["startedAt"] / 1000, NOW - report["finishedAt"] / 1000
        probe = probes.ended(
            index,
            started=began + 0.5,
            finished=ended - 0.2,
            scheduled=began + 1,
            text=json.dumps(report, separators=(",", ":")),
            code=int(result["status"]),
        )
        probe["metadata"]["creationTimestamp"] = probes.stamp(NOW - began - 2)
        found.append(probe)
    return found


def evidence(scenario: str, *, mps: bool = False, probe: Probe = Probe.THROUGHPUT, held: int = 0) -> NodeEvidence:
    sharing = pods(scenario)
    count = len(sharing)
    slots = count + held
    more = [probes.unplaced(count)] if probe is Probe.SHARING else []
    return evidence_of(
        probe,
        NodeRound(NODE, users=count + len(more), fill=count, greedy=False, held=held),
        node_facts(NODE, node(NODE, gpus=slots), pods=[plugin_pod(NODE), DAEMON], runtime_class=True),
        Promise(labels={}, taints=[], mps=mps, plugin=True),
        [*sharing, *more],
        [],
        physical=1,
        replicas=slots,
        now=NOW,
    )


def judged(scenario: str, **kwargs: Any) -> NodeReport:
    probe = kwargs.get("probe", Probe.THROUGHPUT)
    return judge_node(probe, evidence(scenario, **kwargs))


def check(report: NodeReport, name: str) -> Check:
    return next(found for found in report.checks if found.name == name)


@pytest.mark.parametrize("scenario", [name for name in RECORDED if not name.startswith("gpu-")])
def test_every_report_of_the_throughput_program_is_read(scenario: str) -> None:
    for text in messages(scenario):
        measured = parse_throughput(text)
        assert (measured.error is None) == (scenario in SPEEDS), text
        assert measured.error is not None or measured.driver == "580.159.04"


@pytest.mark.parametrize("scenario", ["gpu-alone", "gpu-sharers"])
def test_every_report_of_the_probe_script_is_read(scenario: str) -> None:
    for text in messages(scenario):
        output = parse_output(text)
        assert [(gpu.uuid, gpu.name, gpu.memory_total_mib) for gpu in output.gpus] == [(UUID, "NVIDIA H200", 143771)]
        assert (output.driver, output.cuda) == ("580.159.04", "13.0")
        assert output.vector_add is not None
        assert output.vector_add.passed


#: Scenario -> lowest and highest speed of one process over its whole time, in TFLOP/s.
SPEEDS = {
    "alone": (57, 60),
    "sharers-2": (27, 44),
    "sharers-4": (13, 36),
    "sharers-8": (7, 28),
    "starved": (5, 38),
    "mps-limited": (13, 15),
    "mps-unlimited": (15, 37),
}


@pytest.mark.parametrize("scenario", SPEEDS)
def test_speeds_are_an_h200s(scenario: str) -> None:
    """It has 67 TFLOP/s in FP32 by its data sheet."""
    rates = [rate for text in messages(scenario) if (rate := parse_throughput(text).rate()) is not None]
    assert len(rates) == len(messages(scenario))
    least, most = SPEEDS[scenario]
    assert least * 1e12 < 2 * min(rates)
    assert 2 * max(rates) < most * 1e12


def test_one_alone() -> None:
    found = judged("alone")
    assert found.outcome is Outcome.PASSED, found.cause
    assert check(found, "memory").reason == "WholeGpu"


@pytest.mark.parametrize("scenario", ["sharers-2", "sharers-4", "sharers-8"])
def test_time_slicing_loses_little_and_is_fair(scenario: str) -> None:
    found = judged(scenario)
    assert found.outcome is Outcome.PASSED, found.cause
    assert check(found, "throughput").figures["ratio"] > 0.93
    shares = check(found, "fairness").figures["shares"][UUID].values()
    assert min(shares) * len(shares) > 0.85
    assert check(found, "memory").reason == "NotIsolated"


def test_a_starved_sharer_is_found() -> None:
    found = judged("starved")
    assert found.cause is not None
    assert found.cause.reason == "SharerStarved"


def test_limited_clients_of_mps_pass() -> None:
    """CUDA's total stays the whole GPU's; what is free shows the limit, and a greedy client got no more than that."""
    found = judged("mps-limited", mps=True)
    assert found.outcome is Outcome.PASSED, found.cause
    assert check(found, "memory").reason == "Limited"
    assert "35797 MiB" in check(found, "memory").message
    assert check(found, "throughput").figures["ratio"] > 0.95
    assert RECORDED["mps-limited"][-1]["output"].endswith("held 35796 MiB\n")


def test_clients_of_mps_without_limits_do_not() -> None:
    found = judged("mps-unlimited", mps=True)
    assert found.cause is not None
    assert (found.cause.name, found.cause.reason) == ("memory", "MpsLimitMissing")
    assert RECORDED["mps-unlimited"][-1]["output"].endswith("held 142560 MiB\n")


def test_memory_that_another_fills_is_no_fault_of_the_node() -> None:
    found = judged("memory-full", held=3)
    assert found.outcome is Outcome.BUSY
    assert found.cause is not None
    assert found.cause.reason == "MemoryInUse"


def test_sharers_that_ran_at_once() -> None:
    found = judged("gpu-sharers", probe=Probe.SHARING)
    assert found.outcome is Outcome.PASSED, found.cause
    assert check(found, "distribution").figures["containersPerGpu"] == {UUID: 4}


def test_without_a_gpu() -> None:
    (text,) = messages("no-gpu")
    error = parse_throughput(text).error
    assert error is not None
    assert error.message == "cuInit: no CUDA-capable device is detected (100)"
