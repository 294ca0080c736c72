"""Whether what was evicted has found a place."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gpu_fleet.core.gates.placement import RECREATED_WITHIN_S
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.verdict import Phase

GATE = gate_named("pods_placed")
SINCE = datetime(2026, 11, 30, 5, 0, tzinfo=UTC).timestamp()
WORKLOAD = {
    "namespace": "ml",
    "kind": "ReplicaSet",
    "name": "serve",
    "uid": "rs",
    "evicted": ["a", "b"],
    "since": SINCE,
}


def args(now: float = 10.0, *workloads: dict[str, Any]) -> dict[str, Any]:
    return {"displaced": list(workloads or (WORKLOAD,)), "now": SINCE + now, "started": SINCE, "here": SINCE + now}


def pod(uid: str, after: float = 5.0, owner: str = "rs", **changes: Any) -> dict[str, Any]:
    made = datetime.fromtimestamp(SINCE + after, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found: dict[str, Any] = {
        "metadata": {
            "name": f"serve-{uid}",
            "namespace": "ml",
            "uid": uid,
            "creationTimestamp": made,
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "spec": {"nodeName": "n2"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    if changes.pop("deleting", False):
        found["metadata"]["deletionTimestamp"] = made
    return {**found, **changes}


PENDING: dict[str, Any] = {
    "spec": {},
    "status": {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: 3 Insufficient nvidia.com/gpu"}
        ],
    },
}


def test_as_many_new_pods_as_were_evicted_are_ready() -> None:
    verdict = GATE.judge({"pods_0": [pod("c"), pod("d")]}, args())
    assert (verdict.phase, verdict.reason) == (Phase.READY, "PodsPlaced")
    (found,) = (verdict.data or {})["workloads"]
    assert found["running"] == [{"pod": "serve-c", "node": "n2"}, {"pod": "serve-d", "node": "n2"}]


@pytest.mark.parametrize(
    "other",
    [
        pod("old", -600.0),  # a replica that ran elsewhere before
        pod("a"),  # an evicted one
        pod("c", deleting=True),
        pod("c", owner="another"),
        pod("c", **PENDING),
        pod("c", status={"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}),
    ],
    ids=["existed", "evicted", "deleting", "another owner", "pending", "not ready"],
)
def test_a_pod_that_replaces_none_does_not_count(other: dict[str, Any]) -> None:
    verdict = GATE.judge({"pods_0": [other, pod("d")]}, args())
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "PodsPending")


def test_a_pending_pod_says_why() -> None:
    verdict = GATE.judge({"pods_0": [pod("c", **PENDING), pod("d")]}, args(3600.0))
    assert verdict.phase is Phase.PROGRESSING
    assert "serve-c is not scheduled: 0/3 nodes: 3 Insufficient nvidia.com/gpu" in verdict.message
    assert "ml/ReplicaSet/serve" in verdict.message


def test_what_its_controller_does_not_create_again_is_no_longer_wanted() -> None:
    soon, late = args(RECREATED_WITHIN_S - 1), args(RECREATED_WITHIN_S + 1)
    assert GATE.judge({"pods_0": [pod("c")]}, soon).phase is Phase.PROGRESSING
    verdict = GATE.judge({"pods_0": [pod("c")]}, late)
    assert verdict.phase is Phase.READY
    assert (verdict.data or {})["workloads"][0]["notWanted"] == 1
    assert "1 no longer wanted" in verdict.message


def test_a_job_that_has_ended_is_placed() -> None:
    done = pod("c", status={"phase": "Succeeded"})
    assert GATE.judge({"pods_0": [done, pod("d")]}, args()).ready


def test_each_namespace_is_looked_at_once() -> None:
    other = {**WORKLOAD, "namespace": "web", "uid": "x"}
    queries = GATE.queries(args(10.0, WORKLOAD, other, WORKLOAD))
    assert [getattr(query, "namespace", None) for query in queries] == ["ml", "web"]
