"""Opening proven nodes and marking the others, against the sandbox's API server, killed at any point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.admission.mark import proof_of
from gpu_fleet.core.errors import Forbidden, TransientError
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_PROTECTED_BY,
    CONDITION_PROVEN,
    LABEL_NODE_POOL,
    TAINT_QUARANTINED,
    TAINT_UNPROVEN,
)
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.admission.admit import AdmitNodesOperator
from gpu_fleet.operators.lock import SKIPPED
from gpu_fleet.operators.preconditions import HadLock, HoldsLock
from gpu_fleet.operators.validation.probes import REPORT, RunProbesOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

POOL, RUN = "shared-a10g", "r1"
PASSED, FAILED, DOUBT = Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    for name in ("n1", "n2"):
        taints = [
            {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"},
            {"key": TAINT_UNPROVEN, "effect": "NoSchedule"},
        ]
        shared.kube.create(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": {LABEL_NODE_POOL: POOL}},
                "spec": {"taints": taints},
            }
        )
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        shared.kube.patch(
            ObjectRef(NODE, name), {"status": {"conditions": [ready]}}, subresource="status", strategy="strategic"
        )
    yield shared
    shared.faults.clear()
    for node in shared.kube.list(NODE):
        shared.kube.delete(ObjectRef(NODE, node["metadata"]["name"]))


def report(nodes: dict[str, Outcome]) -> PoolReport:
    words = {PASSED: ("Fine", ""), FAILED: ("DifferentGpus", "two UUIDs"), DOUBT: ("ReportsMissing", "3 of 4")}
    reports = tuple(NodeReport(name, {}, (Check("gpu", outcome, *words[outcome]),)) for name, outcome in nodes.items())
    return PoolReport("demo", POOL, "sharing", "x/y", 1, 4, 0.0, 1.0, reports)


def task_context(cluster: SandboxCluster, *, run: str = RUN, **validation: Any) -> Any:
    base = spec_at(str(cluster.access.path)).to_json()
    changed = {**base["validation"], "admission": "gated", **validation}
    return context(
        TaskInstance(dag_id="gpu_admit.demo", run_id=run, spec=spec_at(str(cluster.access.path), validation=changed))
    )


def admit(in_context: Any, found: dict[str, Outcome] | None = None) -> dict[str, Any]:
    with DAG("gpu_admit.demo"):
        probe = RunProbesOperator(task_id="sharing", node_pool=POOL, probe="sharing")
        task = AdmitNodesOperator(task_id="admit_nodes", node_pool=POOL, without_lock=True)
        probe >> task
    in_context["ti"].xcoms[REPORT] = report(found).to_json() if found else None
    result: dict[str, Any] = task.execute(in_context)
    return result


def node_of(cluster: SandboxCluster, name: str) -> dict[str, Any]:
    return cluster.kube.get(ObjectRef(NODE, name)) or {}


def keys(cluster: SandboxCluster, name: str) -> list[str]:
    """Without the API server's own, of a new node that is not Ready."""
    found = [taint["key"] for taint in node_of(cluster, name)["spec"].get("taints") or []]
    return [key for key in found if not key.startswith("node.kubernetes.io/")]


def said(cluster: SandboxCluster, name: str) -> tuple[str, str]:
    proof = proof_of(node_of(cluster, name))
    assert proof is not None
    return str(proof.status), proof.reason


def test_what_passed_is_opened_and_what_failed_stays_closed_and_says_why(cluster: SandboxCluster) -> None:
    result = admit(task_context(cluster), {"n1": PASSED, "n2": FAILED})
    assert keys(cluster, "n1") == ["nvidia.com/gpu"]
    assert keys(cluster, "n2") == ["nvidia.com/gpu", TAINT_UNPROVEN]
    assert said(cluster, "n1") == ("True", "ProofPassed")
    assert said(cluster, "n2") == ("False", "DifferentGpus")
    assert result["admitted"] == ["n1"]
    assert [(each["node"], each["status"], each["reason"]) for each in result["closed"]] == [
        ("n2", "False", "DifferentGpus")
    ]


def test_the_kubelets_conditions_stay(cluster: SandboxCluster) -> None:
    admit(task_context(cluster), {"n1": PASSED, "n2": PASSED})
    kinds = [each["type"] for each in node_of(cluster, "n1")["status"]["conditions"]]
    assert sorted(kinds) == sorted(["Ready", CONDITION_PROVEN])


def test_taints_of_others_stay(cluster: SandboxCluster) -> None:
    taints = [*node_of(cluster, "n1")["spec"]["taints"], {"key": TAINT_QUARANTINED, "effect": "NoSchedule"}]
    cluster.kube.patch(ObjectRef(NODE, "n1"), {"spec": {"taints": taints}})
    admit(task_context(cluster), {"n1": PASSED})
    assert keys(cluster, "n1") == ["nvidia.com/gpu", TAINT_QUARANTINED]


def test_a_task_that_was_killed_between_the_condition_and_the_taint_is_completed_by_the_next(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = KubeClient.patch

    def dies(self: KubeClient, ref: ObjectRef, body: Any, **how: Any) -> Any:
        if "spec" in body:
            raise SystemExit
        return patch(self, ref, body, **how)

    with monkeypatch.context() as killed:
        killed.setattr(KubeClient, "patch", dies)
        with pytest.raises(SystemExit):
            admit(task_context(cluster), {"n1": PASSED})
    assert said(cluster, "n1") == ("True", "ProofPassed")
    assert TAINT_UNPROVEN in keys(cluster, "n1")
    # Another run, which has proven nothing by itself.
    assert admit(task_context(cluster, run="r2"))["admitted"] == ["n1"]
    assert keys(cluster, "n1") == ["nvidia.com/gpu"]


def test_again_changes_nothing(cluster: SandboxCluster) -> None:
    admit(task_context(cluster), {"n1": PASSED, "n2": FAILED})
    before = node_of(cluster, "n1")["spec"], node_of(cluster, "n2")["spec"]
    again = admit(task_context(cluster), {"n1": PASSED, "n2": FAILED})
    assert (node_of(cluster, "n1")["spec"], node_of(cluster, "n2")["spec"]) == before
    assert again["admitted"] == []


def test_without_a_proof_nodes_wait_until_their_time_is_over(cluster: SandboxCluster) -> None:
    result = admit(task_context(cluster))
    assert said(cluster, "n1") == ("Unknown", "ProofPending")
    assert {each["node"] for each in result["closed"]} == {"n1", "n2"}
    version = node_of(cluster, "n1")["metadata"]["resourceVersion"]
    admit(task_context(cluster))
    assert node_of(cluster, "n1")["metadata"]["resourceVersion"] == version, "what is known is not written again"


@pytest.mark.parametrize(
    ("policy", "reason", "left"),
    [
        ("keepAway", "ProofOverdue", ["nvidia.com/gpu", TAINT_UNPROVEN]),
        ("withWarning", "AdmittedUnproven", ["nvidia.com/gpu"]),
    ],
)
def test_after_the_time_box_the_policy_decides(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, policy: str, reason: str, left: list[str]
) -> None:
    late = KubeClient.now
    monkeypatch.setattr(KubeClient, "now", lambda self: late(self) + 3600)
    found = admit(task_context(cluster, admitWithin="20m", admitUnproven=policy), {"n1": DOUBT})
    assert said(cluster, "n1") == ("Unknown", reason)
    assert keys(cluster, "n1") == left
    assert found["admitted"] == (["n1", "n2"] if policy == "withWarning" else [])
    proof = proof_of(node_of(cluster, "n1"))
    assert proof is not None
    assert "ReportsMissing: 3 of 4" in proof.message


def test_a_run_that_never_got_the_lock_says_who_holds_it(cluster: SandboxCluster) -> None:
    from gpu_fleet.operators.lock import AcquireLockOperator

    in_context = task_context(cluster)
    in_context["ti"].xcoms[SKIPPED] = {"reason": "ClusterBusy", "message": "held by gpu_lifecycle.demo/r7"}
    with DAG("gpu_admit.demo"):
        lock = AcquireLockOperator(task_id="acquire_turn", if_taken="skip")
        task = AdmitNodesOperator(task_id="admit_nodes", node_pool=POOL, without_lock=True)
        lock >> task
    task.execute(in_context)
    proof = proof_of(node_of(cluster, "n1"))
    assert proof is not None
    assert proof.message == "ClusterBusy: held by gpu_lifecycle.demo/r7"


def test_a_node_that_another_run_is_proving_is_not_touched(cluster: SandboxCluster) -> None:
    annotation = {ANNOTATION_PROTECTED_BY: "gpu_lifecycle.demo/r7"}
    cluster.kube.patch(ObjectRef(NODE, "n1"), {"metadata": {"annotations": annotation}})
    admit(task_context(cluster))
    assert proof_of(node_of(cluster, "n1")) is None
    assert said(cluster, "n2") == ("Unknown", "ProofPending")


def test_without_the_permission_nothing_is_opened_and_the_reason_is_left_for_the_publication(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: KubeClient, ref: ObjectRef, body: Any, **how: Any) -> Any:
        raise Forbidden('nodes "n1" is forbidden: cannot patch resource "nodes/status"')

    monkeypatch.setattr(KubeClient, "patch", forbidden)
    in_context = task_context(cluster)
    with pytest.raises(Forbidden):
        admit(in_context, {"n1": PASSED})
    assert TAINT_UNPROVEN in keys(cluster, "n1")
    assert in_context["ti"].xcoms["failure"]["reason"] == "Forbidden"


def test_a_node_that_always_changes_is_left_to_a_retry(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = KubeClient.get

    def disturbed(self: KubeClient, ref: ObjectRef) -> Any:
        found = get(self, ref)
        cluster.kube.patch(ref, {"metadata": {"annotations": {"heart": found["metadata"]["resourceVersion"]}}})
        return found

    monkeypatch.setattr(KubeClient, "get", disturbed)
    with pytest.raises(TransientError):
        admit(task_context(cluster), {"n1": PASSED})


def test_in_other_dags_it_needs_the_lock_and_in_its_own_it_does_not() -> None:
    mine = AdmitNodesOperator(task_id="a", node_pool=POOL, without_lock=True)
    others = AdmitNodesOperator(task_id="b", node_pool=POOL)
    assert not {HadLock, HoldsLock} & {type(each) for each in mine.preconditions}
    assert {HadLock, HoldsLock} <= {type(each) for each in others.preconditions}
