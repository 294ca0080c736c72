"""The status of a probe pod to which an admission webhook added containers."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.probes.plan import NodeRound, Probe
from gpu_fleet.core.probes.status import failed_before, has_ended, own_state, waiting_reason
from gpu_fleet.core.reasons.catalogue import NODE_CAUSES
from gpu_fleet.core.validation.judge import judge_node
from gpu_fleet.core.validation.report import Outcome
from tests.unit.core import probe_objects as probes
from tests.unit.core.cluster_objects import NOW, POOL, node
from tests.unit.core.probe_objects import NODE
from tests.unit.core.validation.test_judge import check, evidence


def with_sidecar(pod: dict[str, Any], **state: Any) -> dict[str, Any]:
    """The kubelet lists containers by name: ``agent`` before ``probe``."""
    agent = {"name": "agent", "restartCount": 0, "state": state or {"running": {"startedAt": probes.stamp(NOW - 40)}}}
    pod["status"]["containerStatuses"] = [agent, *pod["status"].get("containerStatuses", [])]
    pod["status"]["phase"] = "Running"
    return pod


def with_init(pod: dict[str, Any], phase: str = "Pending", **state: Any) -> dict[str, Any]:
    pod["status"]["initContainerStatuses"] = [{"name": "agent-init", "restartCount": 0, "state": state}]
    pod["status"]["phase"] = phase
    return pod


def test_a_sidecar_that_runs_on_does_not_keep_a_probe_from_having_ended() -> None:
    pod = with_sidecar(probes.ended(0))
    assert has_ended(pod)
    assert own_state(pod)["terminated"]["message"]
    assert not has_ended(with_sidecar(probes.running(0)))


def test_a_sidecar_that_cannot_start_is_not_the_probes_trouble() -> None:
    pod = with_sidecar(probes.running(0), waiting={"reason": "ImagePullBackOff", "message": "agent:1"})
    assert waiting_reason(pod) is None


def test_the_report_of_a_pod_that_still_runs_is_read() -> None:
    pods = [with_sidecar(probes.ended(index)) for index in range(4)]
    report = judge_node(Probe.SHARING, evidence([*pods, probes.unplaced(4)]))
    assert report.outcome is Outcome.PASSED, report
    assert check(report, "concurrency").figures["containers"] == 4


def test_an_added_init_container_that_fails_is_named_and_is_no_fault_of_the_node() -> None:
    broken = [
        with_init(probes.waiting(index, "PodInitializing"), "Failed", terminated={"exitCode": 3, "reason": "Error"})
        for index in range(4)
    ]
    assert failed_before(broken[0]) == "init container agent-init ended with status 3: Error"
    report = judge_node(Probe.SHARING, evidence([*broken, probes.unplaced(4)]))
    cause = check(report, "probes")
    assert (cause.outcome, cause.reason) == (Outcome.FAILED, "InjectedContainerFailed")
    assert "admission webhook" in cause.message
    assert cause.reason not in NODE_CAUSES


@pytest.mark.parametrize(("age", "settled"), [(5.0, False), (90.0, True)])
def test_an_added_init_container_whose_image_cannot_be_pulled_is_not_waited_for_until_the_deadline(
    age: float, settled: bool
) -> None:
    stuck = {"reason": "ImagePullBackOff", "message": "agent:1"}
    pod = with_init(probes.waiting(0, "PodInitializing", scheduled=age), waiting=stuck)
    assert waiting_reason(pod) == ("ImagePullBackOff", "added init container agent-init: agent:1")
    round_ = NodeRound(NODE, users=1, fill=1, greedy=False, held=0)
    args = {"namespace": "n", "selector": "x=y", "pool": POOL, "rounds": [round_.to_json()], "now": NOW}
    snapshot = {"pods": [pod], "nodes": [node(NODE)], "failures": []}
    assert gate_named("probes_finished").judge(snapshot, args).ready is settled
