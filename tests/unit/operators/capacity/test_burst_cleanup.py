"""What a burst leaves behind, against the sandbox's API server: users' pods at the last moment, deaths, retries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpu_fleet.core.capacity.burst import burst_pod
from gpu_fleet.core.errors import GateRefused
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import COMPONENT_BURST, LABEL_COMPONENT, LABEL_NODE_POOL, SYSTEM_NAMESPACE
from gpu_fleet.core.verdict import Verdict, failed, ready
from gpu_fleet.operators.capacity import burst, removal
from gpu_fleet.operators.capacity.burst import BURST, RequestSharedCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.pool import FAILURE
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core.node_objects import job
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL = "shared-a10g"
TOO_MANY = failed("BurstBoughtTooMany", "8 pods bought 3 NodeClaims")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml")
        for name in ("ml", SYSTEM_NAMESPACE):
            cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            account = {"apiVersion": "v1", "kind": "ServiceAccount"}
            cluster.kube.apply(account | {"metadata": {"name": "default", "namespace": name}})
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCluster]:
    """The burst has bought ``n1``, ``n2`` and ``n3``, of which the first has not joined yet."""
    monkeypatch.setattr(removal, "SCHEDULER_LAG_S", 0.0)
    # What the pool is asked for afterwards is another test's matter.
    monkeypatch.setattr(RequestCapacityOperator, "act", lambda *_: {"asked": True})
    monkeypatch.setattr(burst, "hardware", lambda *_: type("Hardware", (), {"count": 1}))
    for name in ("n1", "n2", "n3"):
        buy(shared, name, joined=name != "n1")
    yield shared
    for pod in shared.kube.list(POD):
        ref = ObjectRef(POD, pod["metadata"]["name"], pod["metadata"]["namespace"])
        shared.kube.delete(ref, grace_seconds=0)
    for kind in (NODE, NODE_CLAIM):
        for item in shared.kube.list(kind):
            shared.kube.delete(ObjectRef(kind, item["metadata"]["name"]))


def buy(cluster: SandboxCluster, name: str, *, joined: bool = True) -> None:
    labels = {LABEL_NODE_POOL: POOL}
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}
    claim = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {"name": f"claim-{name}", "labels": labels},
        "spec": {"nodeClassRef": reference, "requirements": []},
    }
    cluster.kube.create(claim)
    if joined:
        join(cluster, name)


def join(cluster: SandboxCluster, name: str) -> None:
    labels = {LABEL_NODE_POOL: POOL}
    cluster.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    cluster.kube.patch(ObjectRef(NODE_CLAIM, f"claim-{name}"), {"status": {"nodeName": name}}, subresource="status")


class Burst:
    """One task whose tries share their state; the wait has ended with a verdict."""

    def __init__(self, cluster: SandboxCluster, verdict: Verdict, *, wanted: int = 2) -> None:
        spec = spec_at(str(cluster.access.path))
        pools = [{**pool, "wantedNodes": wanted} for pool in spec.to_json()["nodePools"] if pool["name"] == POOL]
        self.spec = spec_at(str(cluster.access.path), nodePools=pools)
        self.operator = RequestSharedCapacityOperator(task_id="request", node_pool=POOL)
        self.ti = TaskInstance(spec=self.spec)
        self.context = context(self.ti, proveBurst=True)
        self.verdict = verdict
        # The turn is another test's matter.
        self.operator.prepare(self.context)

    def ends(self) -> Any:
        if self.verdict.failed:
            return self.operator._note_and_end(self.context, keep=0, error=self.verdict.error())
        wanted = self.operator.this_pool.wanted_nodes
        return self.operator._note_and_end(self.context, keep=wanted, verdict=self.verdict)

    def tried_again(self) -> Any:
        return self.operator.act(self.context)

    def pod(self, cluster: SandboxCluster, node: str, phase: str = "Running") -> None:
        (pool,) = self.spec.node_pools
        pod = burst_pod("demo", pool, 0, lifetime_s=600, image="pause", run="manual__1", run_label="r")
        pod["spec"].pop("priorityClassName", None)
        pod["spec"].pop("runtimeClassName", None)
        pod["spec"]["nodeName"] = node
        cluster.kube.create(pod)
        ref = ObjectRef(POD, pod["metadata"]["name"], SYSTEM_NAMESPACE)
        cluster.kube.patch(ref, {"status": {"phase": phase}}, subresource="status")


def claims(cluster: SandboxCluster) -> set[str]:
    return {item["metadata"]["name"] for item in cluster.kube.list(NODE_CLAIM)}


def cordoned(cluster: SandboxCluster) -> list[str]:
    """Of the nodes whose NodeClaims are still there: no Karpenter takes the others away here."""
    kept = {(item.get("status") or {}).get("nodeName") for item in cluster.kube.list(NODE_CLAIM)}
    nodes = [item for item in cluster.kube.list(NODE) if item["spec"].get("unschedulable")]
    return [item["metadata"]["name"] for item in nodes if item["metadata"]["name"] in kept]


def killed(patch: pytest.MonkeyPatch, owner: Any, name: str, work: Callable[[], Any]) -> None:
    """A try that ends where it would have called that function."""

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with patch.context() as patched:
        patched.setattr(owner, name, die)
        with pytest.raises(KeyboardInterrupt):
            work()


def test_what_a_failed_burst_has_bought_goes_and_the_pool_wants_nothing_of_it(cluster: SandboxCluster) -> None:
    task = Burst(cluster, TOO_MANY)
    with pytest.raises(GateRefused, match="bought 3 NodeClaims"):
        task.ends()
    assert claims(cluster) == set()
    assert task.ti.xcoms[FAILURE]["reason"] == "BurstBoughtTooMany"


def test_nodes_within_the_wanted_ones_stay_and_are_not_cordoned(cluster: SandboxCluster) -> None:
    task = Burst(cluster, ready("BurstFits", "fits", nodes=["claim-n1", "claim-n2"]))
    assert task.ends() == {"asked": True}
    assert claims(cluster) == {"claim-n1", "claim-n2"}
    assert cordoned(cluster) == []
    assert task.ti.xcoms[BURST] == {"pods": 8, "nodes": ["claim-n1", "claim-n2"]}


def test_a_pod_of_the_burst_that_is_still_ending_keeps_no_node(cluster: SandboxCluster) -> None:
    task = Burst(cluster, TOO_MANY)
    task.pod(cluster, "n2")
    with pytest.raises(GateRefused):
        task.ends()
    (pod,) = cluster.kube.list(POD, SYSTEM_NAMESPACE)
    assert pod["metadata"]["labels"][LABEL_COMPONENT] == COMPONENT_BURST
    assert pod["metadata"]["deletionTimestamp"]
    assert claims(cluster) == set()


def test_a_job_that_is_bound_just_after_the_cordon_keeps_its_node_in_service(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler decided before it saw the cordon: the last look is after a pause."""
    monkeypatch.setattr(removal.time, "sleep", lambda _: cluster.kube.create(job("late", "n2")))
    with pytest.raises(GateRefused):
        Burst(cluster, TOO_MANY).ends()
    assert claims(cluster) == {"claim-n2"}
    assert cordoned(cluster) == []


def test_a_node_that_registers_just_before_its_deletion_is_cordoned_and_looked_at_first(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, registered = Burst(cluster, TOO_MANY), []
    delete = task.operator._delete

    def registers_first(claim: Any) -> bool:
        if claim["metadata"]["name"] == "claim-n1" and not registered:
            registered.append("n1")
            join(cluster, "n1")
            cluster.kube.create(job("first", "n1"))
        return delete(claim)

    monkeypatch.setattr(task.operator, "_delete", registers_first)
    with pytest.raises(GateRefused):
        task.ends()
    assert registered
    assert claims(cluster) == {"claim-n1"}
    assert cordoned(cluster) == []


def test_a_node_that_somebody_else_has_cordoned_is_left_to_them(cluster: SandboxCluster) -> None:
    cluster.kube.patch(ObjectRef(NODE, "n3"), {"spec": {"unschedulable": True}})
    with pytest.raises(GateRefused):
        Burst(cluster, TOO_MANY).ends()
    assert claims(cluster) == {"claim-n3"}
    assert cordoned(cluster) == ["n3"]


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (burst, "delete_pods"),
        (removal, "cordon"),
        (removal, "await_scheduler"),
        (RequestSharedCapacityOperator, "_delete"),
    ],
)
def test_killed_on_the_way_it_comes_to_the_same_end(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str
) -> None:
    task = Burst(cluster, TOO_MANY)
    task.pod(cluster, "n2")
    killed(monkeypatch, owner, step, task.ends)
    assert len(claims(cluster)) == 3
    with pytest.raises(GateRefused, match="bought 3 NodeClaims") as refused:
        task.tried_again()
    assert refused.value.reason == "BurstBoughtTooMany"
    assert claims(cluster) == set()


def test_killed_on_the_way_it_deletes_nothing_that_somebody_else_has_bought_since(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Burst(cluster, TOO_MANY)
    killed(monkeypatch, RequestSharedCapacityOperator, "_delete", task.ends)
    buy(cluster, "theirs")
    with pytest.raises(GateRefused):
        task.tried_again()
    assert claims(cluster) == {"claim-theirs"}


def test_cleared_after_it_was_killed_it_removes_the_rest_and_begins_anew(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Burst(cluster, TOO_MANY)
    killed(monkeypatch, removal, "await_scheduler", task.ends)
    task.ti.max_tries += 1
    # Nodes without claims still stand: the pool is not empty, so capacity is asked for without a burst.
    assert task.tried_again() == {"asked": True}
    assert claims(cluster) == set()
    assert "not empty" in task.ti.xcoms[BURST]["skipped"]
