"""Is Karpenter dead, or away for a moment?"""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.verdict import Phase


def pod(status: str, *, deleting: bool = False) -> dict[str, Any]:
    metadata = {"name": "k", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {})}
    return {"kind": "Pod", "metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": status}]}}


def deployment(replicas: int | None = 2) -> dict[str, Any]:
    spec = {"replicas": replicas} if replicas is not None else {}
    return {"kind": "Deployment", "metadata": {"name": "karpenter"}, "spec": spec}


@pytest.mark.parametrize(
    ("pods", "deployments", "phase", "reason"),
    [
        ([pod("False"), pod("True")], [deployment()], Phase.READY, "KarpenterServes"),
        ([pod("True")], [], Phase.READY, "KarpenterServes"),
        ([pod("False")], [deployment()], Phase.PROGRESSING, "KarpenterRestarting"),
        ([pod("True", deleting=True)], [deployment(None)], Phase.PROGRESSING, "KarpenterRestarting"),
        ([], [deployment()], Phase.PROGRESSING, "KarpenterRestarting"),
        ([pod("False")], [deployment(0)], Phase.FAILED, "KarpenterAbsent"),
        ([], [], Phase.FAILED, "KarpenterAbsent"),
    ],
    ids=["one of two", "no Deployment", "restarts", "rolls over", "rescheduled", "scaled to 0", "uninstalled"],
)
def test_the_controller(pods: list[Any], deployments: list[Any], phase: Phase, reason: str) -> None:
    gate = gate_named("karpenter_serves")
    verdict = gate.judge({"pods": pods, "deployments": deployments}, {"namespace": "kube-system"})
    assert (verdict.phase, verdict.reason) == (phase, reason)
    assert "kube-system" in verdict.message
