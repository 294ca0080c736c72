"""Reports of DCGM's diagnostics, and the verdict on them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_fleet.core.probes.dcgm import parse_dcgm
from gpu_fleet.core.probes.message import ProbeOutputError
from gpu_fleet.core.probes.plan import NodeRound, Probe
from gpu_fleet.core.validation.evidence import evidence_of
from gpu_fleet.core.validation.facts import Promise, node_facts
from gpu_fleet.core.validation.judge import judge_node
from gpu_fleet.core.validation.report import NodeReport, Outcome
from tests.unit.core import probe_objects as probes
from tests.unit.core.cluster_objects import NOW, node, plugin_pod
from tests.unit.core.probe_objects import NODE


def report(**changes: Any) -> str:
    value = {
        "schema": "gpu-fleet.io/dcgm/v1",
        "startedAt": int((NOW - 30) * 1000),
        "finishedAt": int((NOW - 10) * 1000),
        "driver": "570.133.20",
        "level": 2,
        "passed": ["software", "pcie"],
        "failed": [],
        "warned": [],
        "skipped": ["nvlink"],
        "detail": "",
        "error": None,
    }
    return json.dumps(value | changes)


def judged(text: str, held: int = 0) -> NodeReport:
    pods = [] if held else [probes.ended(0, text=text)]
    # Those that only hold a share have nothing to report.
    holders = [probes.running(index, role="holder", scheduled=50.0) for index in range(3)] if pods else []
    evidence = evidence_of(
        Probe.DCGM,
        NodeRound(NODE, users=len(pods), fill=len(pods), greedy=False, held=held, holders=len(holders)),
        node_facts(NODE, node(NODE), pods=[plugin_pod(NODE)], runtime_class=True),
        Promise(labels={}, taints=[], mps=False, plugin=True),
        [*holders, *pods],
        [],
        physical=1,
        replicas=4,
        now=NOW,
    )
    return judge_node(Probe.DCGM, evidence)


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        (report(), Outcome.PASSED, None),
        (report(warned=["persistence mode"]), Outcome.PASSED, None),
        (report(failed=["memory"], detail="GPU 0: remapped rows"), Outcome.FAILED, "DcgmFailed"),
        (report(passed=[], error={"reason": "NoHostEngine", "message": "x"}), Outcome.FAILED, "NoHostEngine"),
        (report(passed=[], failed=[]), Outcome.FAILED, "AbsurdFigures"),
        (report(level=9), Outcome.FAILED, "AbsurdFigures"),
        (report(passed=["x"] * 300), Outcome.FAILED, "AbsurdFigures"),
        (report(passed="software"), Outcome.FAILED, "OutputOfOtherSchema"),
        (report(finishedAt=int((NOW - 60) * 1000)), Outcome.FAILED, "AbsurdFigures"),
        ("Successfully ran diagnostic for group.", Outcome.FAILED, "OutputNotJson"),
    ],
)
def test_diagnostics(text: str, outcome: Outcome, reason: str | None) -> None:
    found = judged(text)
    assert found.outcome is outcome
    assert (found.cause.reason if found.cause else None) == reason


def test_the_failed_tests_are_named() -> None:
    cause = judged(report(failed=["memory", "pcie"], detail="GPU 0: remapped rows")).cause
    assert cause is not None
    assert "memory, pcie failed" in cause.message
    assert "remapped rows" in cause.message
    assert cause.figures["failed"] == ["memory", "pcie"]


def test_a_node_in_use_is_busy() -> None:
    assert judged("", held=1).outcome is Outcome.BUSY


def test_a_report_is_strict() -> None:
    assert parse_dcgm(report()).skipped == ("nvlink",)
    with pytest.raises(ProbeOutputError):
        parse_dcgm(report(detail=None))
