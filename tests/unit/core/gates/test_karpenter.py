"""Gates on Karpenter's controller."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core.gates.test_node_pools import CREATED_AT, condition


def deployment(**status: Any) -> dict[str, Any]:
    replicas = status.pop("replicas", 1)
    conditions = [condition("Available", "True" if status.get("availableReplicas") else "False")]
    conditions += status.pop("conditions", [])
    return {
        "kind": "Deployment",
        "metadata": {"name": "karpenter", "namespace": "kube-system", "generation": 1},
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": 1, "conditions": conditions, **status},
    }


def karpenter(*deployments: dict[str, Any], pods: list[dict[str, Any]] | None = None) -> Verdict:
    snapshot = {"deployments": list(deployments), "pods": pods or []}
    return gate_named("karpenter_available").judge(
        snapshot, {"namespace": "kube-system", "now": CREATED_AT, "started": CREATED_AT}
    )


UP = {"updatedReplicas": 1, "availableReplicas": 1}


def _unobserved() -> dict[str, Any]:
    return {**deployment(), "status": {}}


def _outdated() -> dict[str, Any]:
    found = deployment(**UP)
    found["metadata"]["generation"] = 2
    return found


@pytest.mark.parametrize(
    ("obj", "phase", "reason"),
    [
        (deployment(**UP), Phase.READY, "KarpenterAvailable"),
        (deployment(updatedReplicas=1), Phase.PROGRESSING, "DeploymentNotAvailable"),
        (deployment(updatedReplicas=1, availableReplicas=1, replicas=2), Phase.PROGRESSING, "DeploymentNotAvailable"),
        (deployment(updatedReplicas=2, availableReplicas=1, replicas=2), Phase.READY, "KarpenterAvailable"),
        (deployment(replicas=0), Phase.PROGRESSING, "ScaledToZero"),
        (_unobserved(), Phase.PROGRESSING, "NotObserved"),
        (_outdated(), Phase.PROGRESSING, "StatusOutdated"),
        (
            deployment(conditions=[condition("Progressing", "False", "ProgressDeadlineExceeded", "timed out")]),
            Phase.FAILED,
            "ProgressDeadlineExceeded",
        ),
        (
            deployment(conditions=[condition("ReplicaFailure", "True", "FailedCreate", "exceeded quota")]),
            Phase.PROGRESSING,
            "FailedCreate",
        ),
    ],
)
def test_karpenter_deployment(obj: dict[str, Any], phase: Phase, reason: str) -> None:
    verdict = karpenter(obj)
    assert (verdict.phase, verdict.reason) == (phase, reason)
    assert "karpenter" in verdict.message


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (
            {"containerStatuses": [{"name": "controller", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            "container controller: ImagePullBackOff",
        ),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
                ]
            },
            "Unschedulable: 0/2 nodes",
        ),
    ],
)
def test_karpenter_says_what_keeps_its_pods(status: dict[str, Any], text: str) -> None:
    pod = {"kind": "Pod", "metadata": {"name": "karpenter-1", "namespace": "kube-system"}, "status": status}
    assert text in karpenter(deployment(), pods=[pod]).message


def crashed(code: int = 2, *, restarts: int = 2, deleting: bool = False, **env: str) -> dict[str, Any]:
    """A pod of Karpenter's whose controller has ended, with these variables besides the chart's."""
    variables = [{"name": name, "value": value} for name, value in {"CLUSTER_NAME": "demo-gpu", **env}.items()]
    metadata: dict[str, Any] = {"name": "karpenter-1", "namespace": "kube-system"}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    state = {
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
        "lastState": {"terminated": {"exitCode": code, "reason": "Error"}},
    }
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"serviceAccountName": "karpenter", "containers": [{"name": "controller", "env": variables}]},
        "status": {"containerStatuses": [{"name": "controller", "restartCount": restarts, **state}]},
    }


def test_karpenter_that_was_given_no_credentials_is_not_waited_for() -> None:
    timed_out = [condition("Progressing", "False", "ProgressDeadlineExceeded", "timed out")]
    for conditions in ([], timed_out):
        verdict = karpenter(deployment(conditions=conditions), pods=[crashed()])
        assert (verdict.phase, verdict.reason, verdict.permanent) == (Phase.FAILED, "KarpenterWithoutCredentials", True)
    for words in (
        "Pod kube-system/karpenter-1, container controller ended with status 2",
        "create-pod-identity-association --cluster-name demo-gpu --namespace kube-system --service-account karpenter",
        "rollout restart",
    ):
        assert words in verdict.message


@pytest.mark.parametrize(
    "pod",
    [
        crashed(AWS_CONTAINER_CREDENTIALS_FULL_URI="http://169.254.170.23/v1/credentials"),
        crashed(AWS_WEB_IDENTITY_TOKEN_FILE="/var/run/secrets/token"),
        crashed(AWS_ACCESS_KEY_ID="AKIA"),
        crashed(0),
        crashed(restarts=1),
        crashed(deleting=True),
    ],
    ids=["pod identity", "IRSA", "keys", "ended well", "ended once", "on its way out"],
)
def test_a_crash_of_another_cause_is_waited_for(pod: dict[str, Any]) -> None:
    assert karpenter(deployment(), pods=[pod]).reason == "DeploymentNotAvailable"


def test_a_replica_that_serves_needs_no_explanation() -> None:
    assert karpenter(deployment(updatedReplicas=2, availableReplicas=1, replicas=2), pods=[crashed()]).ready


def controller_pod(status: str, *, deleting: bool = False) -> dict[str, Any]:
    metadata = {"name": "k", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {})}
    return {"kind": "Pod", "metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": status}]}}


def wanting(replicas: int | None = 2) -> dict[str, Any]:
    spec = {"replicas": replicas} if replicas is not None else {}
    return {"kind": "Deployment", "metadata": {"name": "karpenter"}, "spec": spec}


@pytest.mark.parametrize(
    ("pods", "deployments", "phase", "reason"),
    [
        ([controller_pod("False"), controller_pod("True")], [wanting()], Phase.READY, "KarpenterServes"),
        ([controller_pod("True")], [], Phase.READY, "KarpenterServes"),
        ([controller_pod("False")], [wanting()], Phase.PROGRESSING, "KarpenterRestarting"),
        ([controller_pod("True", deleting=True)], [wanting(None)], Phase.PROGRESSING, "KarpenterRestarting"),
        ([], [wanting()], Phase.PROGRESSING, "KarpenterRestarting"),
        ([controller_pod("False")], [wanting(0)], Phase.FAILED, "KarpenterAbsent"),
        ([], [], Phase.FAILED, "KarpenterAbsent"),
    ],
    ids=["one of two", "no Deployment", "restarts", "rolls over", "rescheduled", "scaled to 0", "uninstalled"],
)
def test_whether_karpenter_is_dead_or_away_for_a_moment(
    pods: list[Any], deployments: list[Any], phase: Phase, reason: str
) -> None:
    gate = gate_named("karpenter_serves")
    verdict = gate.judge({"pods": pods, "deployments": deployments}, {"namespace": "kube-system"})
    assert (verdict.phase, verdict.reason) == (phase, reason)
    assert "kube-system" in verdict.message
