"""Nodes whose kubelet does not answer, and the pods that nobody ends there."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.drain.plan import protection
from gpu_fleet.core.drain.rules import DrainRules, Fate, judge_pod
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.kubernetes.dead_nodes import dead_nodes, is_passed_over, passed_over_at
from tests.unit.core.cluster_objects import NOW, node, stamp

DEAD = {"n1": "NodeStatusUnknown Kubelet stopped posting node status."}


def pod(deleted: float | None = None, where: str = "n1", grace: int | None = 30) -> dict[str, Any]:
    """:param deleted: seconds since its grace period was over."""
    metadata: dict[str, Any] = {"name": "p", "namespace": "team", "uid": "u"}
    if deleted is not None:
        metadata["deletionTimestamp"] = stamp(NOW - deleted)
    spec = {"nodeName": where, **({} if grace is None else {"terminationGracePeriodSeconds": grace})}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


def test_a_node_is_dead_that_has_reported_and_does_no_longer() -> None:
    joining = node("joining")
    joining["status"]["conditions"] = []
    found = dead_nodes([node("well"), node("n1", ready=False), joining])
    assert list(found) == ["n1"]
    assert "container runtime is down" in found["n1"]


@pytest.mark.parametrize(
    ("item", "now", "passed"),
    [
        (pod(61), NOW, True), (pod(59), NOW, False), (pod(-20), NOW, False), (pod(), NOW, False),
        (pod(3600, "n2"), NOW, False), (pod(3600), None, False),
    ],
    ids=["a minute past", "not a minute yet", "in its grace period", "not deleted", "on a ready node", "no clock"],
)  # fmt: skip
def test_a_pod_is_passed_over_as_karpenter_does(item: dict[str, Any], now: float | None, passed: bool) -> None:
    assert is_passed_over(item, DEAD, now) is passed
    verdict = judge_pod(item, DrainRules(dead=DEAD, now=now, force=True))
    assert (verdict.fate is Fate.LEAVE) is passed
    if passed:
        assert verdict.reason == "NodeNotReady"
        assert "Kubelet stopped posting" in verdict.message


def test_when_a_pod_is_passed_over() -> None:
    assert passed_over_at(pod(10), NOW) == NOW + 50
    assert passed_over_at(pod(grace=300), NOW) == NOW + 360
    assert passed_over_at(pod(grace=None), NOW) == NOW + 90
    assert passed_over_at(pod(grace=300), NOW, 5) == NOW + 65


def test_what_keeps_a_pod_there_is_its_node() -> None:
    assert "node n1 is not Ready (NodeStatusUnknown" in protection(pod(5), [], NOW, DEAD)
    assert "not Ready" not in protection(pod(5, "n2"), [], NOW, DEAD)


def test_the_wait_for_pods_says_that_no_kubelet_ends_them() -> None:
    gate = gate_named("pods_gone")
    args = {"nodes": ["n1"], "uids": ["u"], "dead": DEAD}
    verdict = gate.judge({"pods_0": [pod(5)]}, args)
    assert verdict.reason == "PodsTerminating"
    assert "no kubelet terminates those on n1" in verdict.message
    assert "no kubelet" not in gate.judge({"pods_0": [pod(5)]}, {**args, "dead": {}}).message
