from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.eks import ClusterStatus
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.queries import AwsQuery
from gpu_fleet.core.verdict import Phase, Verdict

ARGS = {"cluster": "demo-gpu", "now": 10.0, "started": 0.0}
EXPECTED = {
    ClusterStatus.CREATING: (Phase.PROGRESSING, "ClusterCreating"),
    ClusterStatus.PENDING: (Phase.PROGRESSING, "ClusterPending"),
    ClusterStatus.UPDATING: (Phase.PROGRESSING, "ClusterUpdating"),
    ClusterStatus.ACTIVE: (Phase.READY, "ClusterActive"),
    ClusterStatus.DELETING: (Phase.FAILED, "ClusterDeleting"),
    ClusterStatus.FAILED: (Phase.FAILED, "ClusterFailed"),
}


def judge(*clusters: dict[str, Any], **args: Any) -> Verdict:
    return gate_named("cluster_active").judge({"cluster": list(clusters)}, {**ARGS, **args})


@pytest.mark.parametrize("status", list(ClusterStatus))
def test_every_status_of_a_cluster(status: ClusterStatus) -> None:
    verdict = judge({"name": "demo-gpu", "status": status.value, "endpoint": "https://e", "version": "1.35"})
    assert (verdict.phase, verdict.reason) == EXPECTED[status]
    assert "demo-gpu" in verdict.message
    assert verdict.permanent is verdict.failed


def test_absent_cluster_is_a_permanent_failure_with_a_remedy() -> None:
    verdict = judge()
    assert verdict.failed
    assert verdict.permanent
    assert "aws.region" in verdict.message


def test_active_without_an_endpoint_is_not_yet_usable() -> None:
    assert judge({"status": "ACTIVE"}).reason == "NoEndpoint"


@pytest.mark.parametrize(
    ("found", "wanted", "reason"),
    [
        ("1.35", "1.35", "ClusterActive"),
        ("1.36", "1.35", "ClusterVersionDiffers"),
        ("1.35", None, "ClusterActive"),
        (None, "1.35", "ClusterActive"),
    ],
)
def test_version_of_the_spec_is_the_clusters(found: str | None, wanted: str | None, reason: str) -> None:
    verdict = judge({"status": "ACTIVE", "endpoint": "https://e", "version": found or ""}, version=wanted)
    assert verdict.reason == reason
    assert ("cluster.version" in verdict.message) is verdict.failed


def test_a_status_of_the_future_is_progressing() -> None:
    assert judge({"status": "HIBERNATING"}).phase is Phase.PROGRESSING


def test_health_issues_are_told() -> None:
    issues = [{"code": "Ec2SubnetNotFound", "message": "subnet-1 is gone"}]
    assert "Ec2SubnetNotFound: subnet-1 is gone" in judge({"status": "FAILED", "health": {"issues": issues}}).message


def test_absence_is_an_answer_not_an_error() -> None:
    (query,) = gate_named("cluster_active").queries(ARGS)
    assert isinstance(query, AwsQuery)
    assert "ResourceNotFoundException" in query.absent_codes
