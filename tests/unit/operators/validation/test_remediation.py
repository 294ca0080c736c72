"""Quarantine, replacement and release against the sandbox's API server, killed at any point."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_QUARANTINED, LABEL_NODE_POOL, TAINT_QUARANTINED
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport
from gpu_fleet.operators.capacity import removal
from gpu_fleet.operators.preconditions import HadLock, HoldsLock
from gpu_fleet.operators.validation import remediation
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.operators.validation.remediation import ACTED, RemediateNodesOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL = "shared-a10g"
RUN = "gpu_revalidate.demo/r1"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml")
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCluster]:
    monkeypatch.setattr(removal, "SCHEDULER_LAG_S", 0.0)
    for name in ("n1", "n2", "n3"):
        join(shared, name)
    yield shared
    shared.faults.clear()
    for pod in shared.kube.list(POD):
        shared.kube.delete(ObjectRef(POD, pod["metadata"]["name"], pod["metadata"]["namespace"]), grace_seconds=0)
    for kind in (NODE, NODE_CLAIM):
        for item in shared.kube.list(kind):
            shared.kube.delete(ObjectRef(kind, item["metadata"]["name"]))


def join(cluster: SandboxCluster, name: str) -> None:
    labels = {LABEL_NODE_POOL: POOL}
    taints = [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]
    metadata = {"name": name, "labels": labels}
    cluster.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}})
    claim = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {"name": f"claim-{name}", "labels": labels},
        "spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL},
            "requirements": [],
        },
    }
    cluster.kube.create(claim)
    ref = ObjectRef(NODE_CLAIM, f"claim-{name}")
    cluster.kube.patch(ref, {"status": {"nodeName": name}}, subresource="status")


def use(cluster: SandboxCluster, name: str) -> None:
    """A user's job holds a GPU of the node."""
    container = {"name": "one", "image": "cuda", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    cluster.kube.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"training-{name}", "namespace": "default"},
            "spec": {"nodeName": name, "containers": [container]},
        }
    )


FAILED, PASSED = Outcome.FAILED, Outcome.PASSED


def report(nodes: dict[str, Outcome], reason: str = "XidError") -> PoolReport:
    checks = {
        name: Check("gpu", outcome, reason if outcome is FAILED else "Fine", "XID 79")
        for name, outcome in nodes.items()
    }
    reports = tuple(NodeReport(name, {}, (check,)) for name, check in checks.items())
    return PoolReport("demo", POOL, "sharing", RUN, 1, 4, 0.0, 1.0, reports)


def task_context(cluster: SandboxCluster, run_id: str = "r1", *, policy: str = "quarantine", budget: int = 1) -> Any:
    base = spec_at(str(cluster.access.path)).to_json()
    validation = {**base["validation"], "onFailure": {"policy": policy, "budget": budget}}
    ti = TaskInstance(
        dag_id="gpu_revalidate.demo", run_id=run_id, spec=spec_at(str(cluster.access.path), validation=validation)
    )
    return context(ti)


def remediate(in_context: Any, found: PoolReport | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with monkeypatch.context() as patch:
        patch.setattr(RemediateNodesOperator, "_reports", lambda self, context: [found] if found else [])
        result: dict[str, Any] = RemediateNodesOperator(task_id="remediate", node_pool=POOL).execute(in_context)
    assert in_context["ti"].xcoms["remediation"] == result
    return result


def node_of(cluster: SandboxCluster, name: str) -> dict[str, Any]:
    return cluster.kube.get(ObjectRef(NODE, name)) or {}


def is_quarantined(cluster: SandboxCluster, name: str) -> bool:
    found = node_of(cluster, name)
    parts = {
        bool(found["spec"].get("unschedulable")),
        any(taint["key"] == TAINT_QUARANTINED for taint in found["spec"].get("taints") or []),
        ANNOTATION_QUARANTINED in (found["metadata"].get("annotations") or {}),
    }
    assert len(parts) == 1, f"{name} is quarantined by half: {found}"
    return parts.pop()


def claims(cluster: SandboxCluster) -> set[str]:
    found = cluster.kube.list(NODE_CLAIM)
    return {item["metadata"]["name"] for item in found if not item["metadata"].get("deletionTimestamp")}


ONE_BAD = {"n1": FAILED, "n2": PASSED, "n3": PASSED}


def test_alert_touches_nothing(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    before = node_of(cluster, "n1")
    found = remediate(task_context(cluster, policy="alert"), report(ONE_BAD), monkeypatch)
    assert node_of(cluster, "n1") == before
    assert [(item["node"], item["reason"]) for item in found["left"]] == [("n1", "AlertOnly")]


def test_a_failing_node_is_quarantined_and_says_why(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    found = remediate(task_context(cluster), report(ONE_BAD), monkeypatch)
    assert found == {"policy": "quarantine", "quarantined": ["n1"], "released": [], "replaced": [], "left": []}
    assert [is_quarantined(cluster, name) for name in ("n1", "n2", "n3")] == [True, False, False]
    words = json.loads(node_of(cluster, "n1")["metadata"]["annotations"][ANNOTATION_QUARANTINED])
    assert (words["reason"], words["message"], words["run"]) == ("XidError", "XID 79", RUN)
    assert claims(cluster) == {"claim-n1", "claim-n2", "claim-n3"}


def test_it_is_released_by_a_later_run_that_it_passes(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    before = node_of(cluster, "n1")["spec"]
    remediate(task_context(cluster), report(ONE_BAD), monkeypatch)
    still = remediate(task_context(cluster, "r2"), report(ONE_BAD), monkeypatch)
    assert still["quarantined"] == ["n1"]
    found = remediate(task_context(cluster, "r3"), report({**ONE_BAD, "n1": PASSED}), monkeypatch)
    assert (found["quarantined"], found["released"]) == ([], ["n1"])
    assert node_of(cluster, "n1")["spec"] == before
    assert not is_quarantined(cluster, "n1")


def test_a_persons_cordon_is_left_alone(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.kube.patch(ObjectRef(NODE, "n1"), {"spec": {"unschedulable": True}})
    found = remediate(task_context(cluster), report({**ONE_BAD, "n1": PASSED}), monkeypatch)
    assert found["released"] == []
    assert node_of(cluster, "n1")["spec"]["unschedulable"] is True


def test_without_any_report_nothing_happens(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    found = remediate(task_context(cluster, policy="replace"), None, monkeypatch)
    assert found == {"policy": "replace", "quarantined": [], "released": [], "replaced": [], "left": []}


def test_an_unused_node_is_quarantined_and_its_claim_deleted(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = remediate(task_context(cluster, policy="replace"), report(ONE_BAD), monkeypatch)
    assert (found["quarantined"], found["replaced"], found["left"]) == ([], ["n1"], [])
    assert is_quarantined(cluster, "n1")
    assert claims(cluster) == {"claim-n2", "claim-n3"}


def test_a_job_is_not_taken_its_node_away_from_under_it(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(cluster, "n1")
    found = remediate(task_context(cluster, policy="replace"), report(ONE_BAD), monkeypatch)
    assert (found["quarantined"], found["replaced"]) == (["n1"], [])
    ((left,),) = (found["left"],)
    assert (left["node"], left["reason"]) == ("n1", "InUse")
    assert "default/training-n1" in left["message"]
    assert "claim-n1" in claims(cluster)

    cluster.kube.delete(ObjectRef(POD, "training-n1", "default"), grace_seconds=0)
    later = remediate(task_context(cluster, "r2", policy="replace"), report(ONE_BAD), monkeypatch)
    assert later["replaced"] == ["n1"]
    assert "claim-n1" not in claims(cluster)


def test_a_node_without_a_claim_stays_quarantined(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.kube.delete(ObjectRef(NODE_CLAIM, "claim-n1"))
    found = remediate(task_context(cluster, policy="replace"), report(ONE_BAD), monkeypatch)
    assert found["quarantined"] == ["n1"]
    assert [item["reason"] for item in found["left"]] == ["NoNodeClaim"]


def test_a_defect_of_the_whole_pool_is_nobodys_quarantine(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = dict.fromkeys(ONE_BAD, FAILED)
    found = remediate(task_context(cluster, policy="replace", budget=9), report(everywhere), monkeypatch)
    assert {item["reason"] for item in found["left"]} == {"PoolWide"}
    assert not any(is_quarantined(cluster, name) for name in ONE_BAD)


TWO_BAD = {"n1": FAILED, "n2": FAILED, "n3": PASSED}


class Killed(BaseException):
    """SIGKILL, as far as the code can notice."""


@pytest.mark.parametrize("policy", ["quarantine", "replace"])
@pytest.mark.parametrize("after", range(1, 9))
def test_killed_after_any_request_and_run_again_one_run_takes_no_more_than_its_budget(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, policy: str, after: int
) -> None:
    mine = task_context(cluster, policy=policy)
    requests = 0
    raw = type(cluster.kube).raw

    def dying(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal requests
        answer = raw(self, *args, **options)
        requests += 1
        if requests == after:
            raise Killed
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(type(cluster.kube), "raw", dying)
        with contextlib.suppress(Killed):
            remediate(mine, report(TWO_BAD), monkeypatch)
    found = remediate(mine, report(TWO_BAD), monkeypatch)
    taken = sorted([*found["quarantined"], *found["replaced"]])
    assert taken == ["n1"]
    assert [(item["node"], item["reason"]) for item in found["left"]] == [("n2", "BudgetSpent")]
    assert is_quarantined(cluster, "n1")
    assert not is_quarantined(cluster, "n2")
    assert ("claim-n1" in claims(cluster)) is (policy == "quarantine")
    again = remediate(mine, report(TWO_BAD), monkeypatch)
    assert sorted([*again["quarantined"], *again["replaced"]]) == ["n1"]


def test_a_job_that_is_bound_just_after_the_quarantine_keeps_the_node(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler decided before it saw the cordon: users are looked for after a pause."""
    monkeypatch.setattr(removal.time, "sleep", lambda _: use(cluster, "n1"))
    found = remediate(task_context(cluster, policy="replace"), report(ONE_BAD), monkeypatch)
    assert (found["quarantined"], found["replaced"]) == (["n1"], [])
    assert "default/training-n1" in str(found["left"])


def test_a_replaced_node_that_has_gone_by_the_retry_is_still_told(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = task_context(cluster, policy="replace")
    remediate(mine, report(TWO_BAD), monkeypatch)
    cluster.kube.delete(ObjectRef(NODE, "n1"))
    found = remediate(mine, report(TWO_BAD), monkeypatch)
    assert found["replaced"] == ["n1"]
    assert not is_quarantined(cluster, "n2")


def test_the_budget_is_each_runs_own(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for run_id in ("r1", "r2"):
        found = remediate(task_context(cluster, run_id), report(TWO_BAD), monkeypatch)
    assert found["quarantined"] == ["n1", "n2"]


def test_taints_that_others_write_at_the_same_time_are_kept(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}
    get, done = type(cluster.kube).get, False

    def meanwhile(self: Any, ref: ObjectRef) -> Any:
        nonlocal done
        found = get(self, ref)
        if ref.name == "n1" and found and not done:
            done = True
            taints = [*found["spec"]["taints"], theirs]
            cluster.kube.patch(ref, {"spec": {"taints": taints}}, field_manager="karpenter")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(type(cluster.kube), "get", meanwhile)
        remediate(task_context(cluster), report(ONE_BAD), monkeypatch)
    keys = [taint["key"] for taint in node_of(cluster, "n1")["spec"]["taints"]]
    # No node controller is here that would take the taint of a new node away.
    assert keys == ["nvidia.com/gpu", "node.kubernetes.io/not-ready", "karpenter.sh/disrupted", TAINT_QUARANTINED]


def test_what_is_about_to_be_done_is_noted_before(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = task_context(cluster, policy="replace")
    cluster.fail_requests(verb="delete", kind="NodeClaim", status=403, reason="Forbidden")
    with pytest.raises(Exception, match="claim-n1"):
        remediate(mine, report(ONE_BAD), monkeypatch)
    assert mine["task_state_store"][ACTED] == {"n1": remediation.REPLACE}


def test_only_a_run_that_has_the_turn_remedies() -> None:
    assert {HadLock(), HoldsLock()} <= set(RemediateNodesOperator.preconditions)


def test_a_probe_that_no_node_could_be_given_is_none_of_the_runs(cluster: SandboxCluster) -> None:
    with DAG("gpu_revalidate.demo", schedule=None):
        probes = [RunProbesOperator(task_id=name, node_pool=POOL, probe=name) for name in ("sharing", "dcgm")]
        operator = RemediateNodesOperator(task_id="remediate", node_pool=POOL)
        probes >> operator
    ran = task_context(cluster)
    assert operator._probes(ran) == {"sharing", "dcgm"}
    outcomes = {"sharing": "Passed", "dcgm": "Skipped"}
    ran["ti"].xcom_pull = lambda task_ids, key: {"outcome": outcomes[task_ids]}
    assert operator._probes(ran) == {"sharing"}
