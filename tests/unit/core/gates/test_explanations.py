"""A summary never hides the condition that explains it, in any gate."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.verdict import Verdict
from tests.unit.core import cluster_objects as objects

NOW = objects.NOW
SUMMARY = {"type": "Ready", "status": "False", "reason": "UnhealthyDependents", "message": "SubnetsReady=Unknown"}


def condition(kind: str, status: str, reason: str, message: str = "words", **more: Any) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, **more}


def thing(kind: str, name: str, *conditions: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"name": name, "generation": 2, **metadata},
        "status": {"conditions": list(conditions)},
    }


def judge(gate: str, args: dict[str, Any], **snapshot: list[dict[str, Any]]) -> Verdict:
    known = gate_named(gate)
    args = {"now": NOW, "started": NOW - 60, **args}
    return known.judge({query.key: [] for query in known.queries(args)} | snapshot, args)


@pytest.mark.parametrize(
    ("gate", "kind"), [("node_class_ready", "EC2NodeClass"), ("node_pool_ready", "NodePool")], ids=["class", "pool"]
)
@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_what_a_summary_rests_on_is_the_reason(gate: str, kind: str, status: str) -> None:
    """Ready comes first in the list, and the cause may be Unknown as well as False."""
    cause = condition("ValidationSucceeded", status, "DryRunFailed", "you are not authorized")
    verdict = judge(gate, {"name": "x"}, objects=[thing(kind, "x", SUMMARY, cause)])
    assert verdict.reason == "DryRunFailed"
    assert "you are not authorized" in verdict.message


def test_what_is_false_is_named_before_what_is_unknown_and_both_are_named() -> None:
    found = thing(
        "EC2NodeClass", "x", condition("AMIsReady", "Unknown", "Waiting"), SUMMARY,
        condition("InstanceProfileReady", "False", "Forbidden", "iam:GetRole"),
    )  # fmt: skip
    verdict = judge("node_class_ready", {"name": "x"}, objects=[found])
    assert verdict.reason == "Forbidden"
    assert verdict.message.index("iam:GetRole") < verdict.message.index("AMIsReady")


def test_a_condition_of_an_older_generation_explains_nothing() -> None:
    old = condition("AMIsReady", "False", "AMINotFound", observedGeneration=1)
    verdict = judge("node_class_ready", {"name": "x"}, objects=[thing("EC2NodeClass", "x", SUMMARY, old)])
    assert verdict.reason == "UnhealthyDependents"


def test_an_overlays_cause_is_named() -> None:
    found = thing("NodeOverlay", "o", SUMMARY, condition("PricesReady", "Unknown", "PricesUnread", "throttled"))
    pool = thing("NodePool", "x", condition("Ready", "True", "Ready"))
    verdict = judge("node_pool_ready", {"name": "x", "overlay": "o"}, objects=[pool], overlays=[found])
    assert (verdict.reason, "throttled" in verdict.message) == ("PricesUnread", True)


def deployment(*conditions: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    found = thing("Deployment", "karpenter", *conditions, namespace="kube-system", uid="u", **metadata)
    found["spec"] = {"replicas": 2}
    found["status"] |= {"observedGeneration": 2, "replicas": 0}
    return found


EXCEEDED = condition("Progressing", "False", "ProgressDeadlineExceeded", "has timed out progressing")
QUOTA = condition("ReplicaFailure", "True", "FailedCreate", "exceeded quota: compute")


def test_karpenters_deadline_does_not_hide_the_refused_pods() -> None:
    verdict = judge("karpenter_available", {"namespace": "kube-system"}, deployments=[deployment(EXCEEDED, QUOTA)])
    assert (verdict.reason, "exceeded quota" in verdict.message) == ("ProgressDeadlineExceeded", True)


def test_karpenters_init_container_is_named() -> None:
    waiting = {"name": "init", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    pod = {"kind": "Pod", "metadata": {"name": "k"}, "status": {"initContainerStatuses": [waiting]}}
    verdict = judge("karpenter_available", {"namespace": "kube-system"}, deployments=[deployment()], pods=[pod])
    assert "container init: ImagePullBackOff: no such image" in verdict.message


def helm(found: dict[str, Any]) -> dict[str, Any]:
    found["metadata"] |= {
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "r", "meta.helm.sh/release-namespace": "kube-system"},
    }
    return found


RELEASE = {"release": "r", "namespace": "kube-system"}


def test_a_releases_deadline_does_not_hide_the_refused_pods_when_their_events_are_gone() -> None:
    deployments = {"deployments/kube-system": [helm(deployment(EXCEEDED, QUOTA))]}
    assert "exceeded quota" in judge("release_workloads", RELEASE, **deployments).message


def test_a_jobs_backoff_limit_does_not_hide_how_its_pod_ended() -> None:
    job = helm(thing("Job", "j", condition("Failed", "True", "BackoffLimitExceeded"), namespace="kube-system", uid="u"))
    ended = {"name": "c", "state": {"terminated": {"exitCode": 7, "reason": "Error", "message": "no such table"}}}
    pod = {
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "kube-system", "ownerReferences": [{"kind": "Job", "uid": "u"}]},
        "status": {"phase": "Failed", "containerStatuses": [ended]},
    }
    found = {"jobs/kube-system": [job], "pods/kube-system": [pod]}
    verdict = judge("release_workloads", RELEASE, **found)
    assert verdict.reason == "BackoffLimitExceeded"
    assert "container c: exit code 7 (Error no such table)" in verdict.message


@pytest.mark.parametrize(
    ("api_version", "kind", "found", "words"),
    [
        (
            "v1", "Namespace", condition("NamespaceContentRemaining", "True", "SomeResourcesRemain", "pods. has 2"),
            "pods. has 2",
        ),
        (
            "karpenter.sh/v1", "NodeClaim", condition("Drained", "False", "Draining", "5 pods are waiting"),
            "5 pods are waiting",
        ),
    ],
)  # fmt: skip
def test_what_keeps_an_object_that_is_being_deleted_is_named(
    api_version: str, kind: str, found: dict[str, Any], words: str
) -> None:
    args = {"apiVersion": api_version, "kind": kind, "name": "x"}
    item = thing(kind, "x", found, deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["f"])
    key = next(iter(query.key for query in gate_named("object_gone").queries(args)))
    assert words in judge("object_gone", args, **{key: [item]}).message


def test_a_class_that_does_not_go_is_explained_by_its_cause_and_not_by_its_summary() -> None:
    item = thing(
        "EC2NodeClass", "x", SUMMARY, condition("InstanceProfileReady", "False", "Forbidden", "iam:DeleteRole"),
        deletionTimestamp="2026-01-01T00:00:00Z", labels={"gpu-fleet.io/cluster": "demo"},
    )  # fmt: skip
    assert "iam:DeleteRole" in judge("node_class_gone", {"spec": "demo"}, classes=[item]).message


def test_a_node_that_is_not_ready_tells_every_condition_that_is_not_as_it_should_be() -> None:
    node = objects.node(ready=False)
    node["status"]["conditions"] += [
        condition("DiskPressure", "True", "KubeletHasDiskPressure", "disk is full"),
        condition("MemoryPressure", "False", "Fine", "fine"),
        condition("NetworkingReady", "False", "IPAMDNotReady", "ipamd is down"),
        condition("KernelReady", "True", "Fine", "all well"),
    ]
    words = PoolNode.of(node).not_ready
    assert "container runtime is down" in words
    assert "disk is full" in words
    assert "ipamd is down" in words
    assert "fine" not in words
    assert "all well" not in words
