"""Replacing drifted nodes against the sandbox's API server: jobs that come at the last moment, deaths, retries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.errors import ApiUnavailable, DeadlinePassed
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY, LABEL_NODE_POOL
from gpu_fleet.core.nodes.replacement import Replacement
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport
from gpu_fleet.core.verdict import progressing, ready
from gpu_fleet.operators.capacity import removal
from gpu_fleet.operators.capacity.replacement import without_surge
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.operators.validation.replacement import DELETED, ReplaceDriftedOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core.node_objects import job
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL = "shared-a10g"
RUN = "gpu_lifecycle.demo/manual__1"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml")
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml"}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        cluster.kube.apply(account | {"metadata": {"name": "default", "namespace": "ml"}})
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCluster]:
    """Nodes ``old`` and ``busy`` are drifted, ``new`` has come in place of ``old``."""
    monkeypatch.setattr(removal, "SCHEDULER_LAG_S", 0.0)
    for name in ("old", "busy", "new"):
        join(shared, name)
    yield shared
    shared.faults.clear()
    for pod in shared.kube.list(POD):
        shared.kube.delete(ObjectRef(POD, pod["metadata"]["name"], "ml"), grace_seconds=0)
    for kind in (NODE, NODE_CLAIM):
        for item in shared.kube.list(kind):
            shared.kube.delete(ObjectRef(kind, item["metadata"]["name"]))


def join(cluster: SandboxCluster, name: str) -> None:
    labels = {LABEL_NODE_POOL: POOL}
    cluster.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}
    claim = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {"name": f"claim-{name}", "labels": labels},
        "spec": {"nodeClassRef": reference, "requirements": []},
    }
    cluster.kube.create(claim)
    cluster.kube.patch(ObjectRef(NODE_CLAIM, f"claim-{name}"), {"status": {"nodeName": name}}, subresource="status")


class Run:
    """One task ``replace_drifted``, whose tries share their state."""

    def __init__(
        self, cluster: SandboxCluster, *, passed: tuple[str, ...] = ("old", "new"), mode: str = "idle"
    ) -> None:
        self.kube, spec = cluster.kube, spec_at(str(cluster.access.path))
        with DAG("gpu_lifecycle.demo", schedule=None) as self.dag:
            request = RequestCapacityOperator(task_id="request", node_pool=POOL)
            protect = ProtectNodesOperator(task_id="protect", node_pool=POOL)
            probes = RunProbesOperator(task_id="sharing", node_pool=POOL, probe="sharing")
            self.operator = ReplaceDriftedOperator(task_id="replace", node_pool=POOL)
            request >> protect >> probes >> self.operator
        self.ti = TaskInstance(spec=spec)
        plan = Replacement(chosen=("old",), surge=1, existing=("busy", "old"))
        judged = [*((name, Outcome.PASSED) for name in passed), ("busy", Outcome.BUSY)]
        checks = [NodeReport(name, {}, (Check("any", outcome, "Any", "any"),)) for name, outcome in judged]
        report = PoolReport(
            cluster="demo",
            pool=POOL,
            probe="sharing",
            run="manual__1",
            physical=1,
            replicas=4,
            started_at=0.0,
            finished_at=1.0,
            nodes=tuple(checks),
        )
        self.ti.xcoms |= {
            "replacement": plan.to_json(),
            "report": report.to_json(),
            "return_value": {"nodes": ["busy", "old", "new"], "physical": 1, "replicas": 4},
        }
        self.context = context(self.ti, replaceDrifted=mode)

    def __call__(self) -> Any:
        # The turn is another test's matter.
        self.operator.prepare(self.context)
        return self.operator.act(self.context)


def killed_at_deletion(run: Run) -> None:
    """A try that ends between noting the deletion and asking for it."""

    def die(*_: Any) -> None:
        raise ApiUnavailable("the worker is gone")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run.operator, "_delete", die)
        with pytest.raises(ApiUnavailable):
            run()


def claims(cluster: SandboxCluster) -> set[str]:
    return {item["metadata"]["name"] for item in cluster.kube.list(NODE_CLAIM)}


def cordoned(cluster: SandboxCluster) -> list[str]:
    return [item["metadata"]["name"] for item in cluster.kube.list(NODE) if item["spec"].get("unschedulable")]


def test_an_idle_node_goes_once_its_replacement_has_passed(cluster: SandboxCluster) -> None:
    assert Run(cluster)() == {"mode": "idle", "replaced": ["old"], "left": []}
    assert claims(cluster) == {"claim-busy", "claim-new"}


def test_nothing_goes_unless_it_was_asked_for(cluster: SandboxCluster) -> None:
    assert Run(cluster, mode="none")()["replaced"] == []
    assert len(claims(cluster)) == 3


def test_without_a_proven_replacement_the_node_stays_in_service(cluster: SandboxCluster) -> None:
    found = Run(cluster, passed=("old",))()
    assert found["replaced"] == []
    assert [item["reason"] for item in found["left"]] == ["NotProven"]
    assert cordoned(cluster) == []
    assert len(claims(cluster)) == 3


def test_a_job_that_came_before_the_cordon_keeps_the_node_and_it_is_uncordoned(cluster: SandboxCluster) -> None:
    cluster.kube.create(job("late", "old"))
    found = Run(cluster)()
    assert found["replaced"] == []
    assert found["left"] == [{"node": "old", "reason": "InUse", "message": "holds 1 GPU pod (ml/late)"}]
    assert cordoned(cluster) == []
    assert len(claims(cluster)) == 3


def test_a_job_that_was_bound_just_after_the_cordon_keeps_the_node(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler decided before it saw the cordon: the last look is after a pause."""
    monkeypatch.setattr(removal.time, "sleep", lambda _: cluster.kube.create(job("late", "old")))
    assert [item["reason"] for item in Run(cluster)()["left"]] == ["InUse"]
    assert cordoned(cluster) == []
    assert len(claims(cluster)) == 3


def test_a_node_that_somebody_cordoned_meanwhile_is_left(cluster: SandboxCluster) -> None:
    cluster.kube.patch(ObjectRef(NODE, "old"), {"spec": {"unschedulable": True}})
    assert [item["reason"] for item in Run(cluster)()["left"]] == ["OutOfService"]
    assert cordoned(cluster) == ["old"]
    assert len(claims(cluster)) == 3


def test_killed_before_the_deletion_it_goes_on_and_deletes_once(cluster: SandboxCluster) -> None:
    run = Run(cluster)
    killed_at_deletion(run)
    assert set(run.context["task_state_store"][DELETED]) == {"old"}
    assert cordoned(cluster) == ["old"]
    assert run()["replaced"] == ["old"]
    assert claims(cluster) == {"claim-busy", "claim-new"}
    assert run()["replaced"] == ["old"], "and a third time it has nothing to do"
    assert claims(cluster) == {"claim-busy", "claim-new"}


def test_killed_before_the_deletion_it_still_leaves_a_node_that_is_in_use_by_now(cluster: SandboxCluster) -> None:
    run = Run(cluster)
    killed_at_deletion(run)
    cluster.kube.create(job("late", "old"))
    found = run()
    assert found["replaced"] == []
    assert [item["reason"] for item in found["left"]] == ["InUse"]
    assert cordoned(cluster) == []


def test_another_node_of_the_same_name_is_not_deleted(cluster: SandboxCluster) -> None:
    run = Run(cluster)
    run.context["task_state_store"].set(DELETED, {"old": "another-uid"})
    assert run()["replaced"] == ["old"]
    assert len(claims(cluster)) == 3


def test_a_cordon_of_a_try_that_is_to_leave_the_node_is_taken_back(cluster: SandboxCluster) -> None:
    body = {"metadata": {"annotations": {ANNOTATION_CORDONED_BY: RUN}}, "spec": {"unschedulable": True}}
    cluster.kube.patch(ObjectRef(NODE, "old"), body)
    assert [item["reason"] for item in Run(cluster, passed=("old",))()["left"]] == ["NotProven"]
    assert cordoned(cluster) == []


def test_a_replacement_that_does_not_come_fails_no_pool_that_has_its_wanted_nodes(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, asked = Run(cluster).operator, []
    operator.prepare(Run(cluster).context)

    def look(_gate: str, args: Any, _access: Any) -> Any:
        asked.append(args["wanted"])
        return ready("CapacityReady", "all there", nodes=["a"])

    monkeypatch.setattr("gpu_fleet.operators.capacity.replacement.look", look)
    error = DeadlinePassed("no capacity in us-west-2")
    assert without_surge(operator, error, {"wanted": 3}, 1).data == {"nodes": ["a"]}
    assert asked == [2]
    with pytest.raises(DeadlinePassed):
        without_surge(operator, error, {"wanted": 2}, 0)
    monkeypatch.setattr("gpu_fleet.operators.capacity.replacement.look", lambda *_: progressing("NodesMissing", "none"))
    with pytest.raises(DeadlinePassed):
        without_surge(operator, error, {"wanted": 3}, 1)
