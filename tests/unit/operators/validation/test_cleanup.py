"""Nothing of a validation stays in the cluster, whatever became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.errors import TransientError
from gpu_fleet.core.kubernetes.kinds import NAMESPACE, NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_DO_NOT_DISRUPT,
    ANNOTATION_PROTECTED_BY,
    LABEL_COMPONENT,
    LABEL_NODE_POOL,
    LABEL_POOL,
    SYSTEM_NAMESPACE,
    VALIDATION_NAMESPACE,
)
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.pool import FAILURE
from gpu_fleet.operators.preconditions import HadLock
from gpu_fleet.operators.validation import cleanup as validation_cleanup
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core.cluster_objects import claim as claim_object
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

NOTHING_LEFT: dict[str, Any] = {"unfinished": []}
POOL, OTHER = "shared-a10g", "whole-a100"
PROTECTED = {ANNOTATION_DO_NOT_DISRUPT: "true", ANNOTATION_PROTECTED_BY: "gpu_lifecycle.demo/an-earlier-run"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml")
        for name in (SYSTEM_NAMESPACE, VALIDATION_NAMESPACE):
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            cluster.kube.apply(namespace)
            assert cluster.kube.get(ObjectRef(NAMESPACE, name))
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    yield shared
    for pod in shared.kube.list(POD):
        shared.kube.delete(ObjectRef(POD, pod["metadata"]["name"], pod["metadata"]["namespace"]), grace_seconds=0)
    for kind in (NODE, NODE_CLAIM):
        for item in shared.kube.list(kind):
            shared.kube.delete(ObjectRef(kind, item["metadata"]["name"]))


def pod(cluster: SandboxCluster, name: str, component: str, pool: str = POOL) -> None:
    namespace = VALIDATION_NAMESPACE if component == "probe" else SYSTEM_NAMESPACE
    metadata = {"name": name, "namespace": namespace, "labels": {LABEL_COMPONENT: component, LABEL_POOL: pool}}
    spec = {"containers": [{"name": "one", "image": "pause"}]}
    cluster.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def node(cluster: SandboxCluster, name: str, annotations: dict[str, str], pool: str = POOL) -> None:
    metadata = {"name": name, "labels": {LABEL_NODE_POOL: pool}, "annotations": annotations}
    cluster.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata})


def annotations(cluster: SandboxCluster, name: str) -> dict[str, str]:
    found = cluster.kube.get(ObjectRef(NODE, name))
    assert found is not None
    return dict(found["metadata"].get("annotations") or {})


def clean_up(cluster: SandboxCluster) -> Any:
    task_context = context(TaskInstance(spec=spec_at(str(cluster.access.path))))
    return CleanUpValidationOperator(task_id="clean_up", node_pool=POOL).execute(task_context)


def test_probes_and_placeholders_of_the_pool_go_whichever_run_left_them(cluster: SandboxCluster) -> None:
    pod(cluster, "probe", "probe")
    pod(cluster, "placeholder", "placeholder")
    pod(cluster, "held", "hold")
    pod(cluster, "probe-of-the-other", "probe", OTHER)
    pod(cluster, "placeholder-of-the-other", "placeholder", OTHER)
    assert clean_up(cluster) == {"pods": ["probe"], "placeholders": ["placeholder"], "unprotected": []} | NOTHING_LEFT
    left = {item["metadata"]["name"] for item in cluster.kube.list(POD)}
    assert left == {"held", "probe-of-the-other", "placeholder-of-the-other"}


def test_protection_of_an_earlier_run_is_taken_back_and_a_users_own_stays(cluster: SandboxCluster) -> None:
    node(cluster, "ours", PROTECTED)
    node(cluster, "users", {ANNOTATION_DO_NOT_DISRUPT: "true"})
    node(cluster, "other", PROTECTED, OTHER)
    assert clean_up(cluster)["unprotected"] == ["ours"]
    assert annotations(cluster, "ours") == {}
    assert annotations(cluster, "users") == {ANNOTATION_DO_NOT_DISRUPT: "true"}
    assert annotations(cluster, "other") == PROTECTED


def test_second_clean_up_finds_nothing(cluster: SandboxCluster) -> None:
    node(cluster, "ours", PROTECTED)
    pod(cluster, "placeholder", "placeholder")
    clean_up(cluster)
    assert clean_up(cluster) == {"pods": [], "placeholders": [], "unprotected": []} | NOTHING_LEFT


def test_only_the_clean_up_needs_the_turn_to_have_been_had() -> None:
    assert HadLock() in CleanUpValidationOperator.preconditions
    assert HadLock() not in ProtectNodesOperator.preconditions


class EndedFromOutside(TaskInstance):
    """Of a run that was marked failed while the probes were being created."""

    def xcom_pull(self, task_ids: str | None = None, key: str = "return_value") -> Any:
        return None if task_ids == "sharing" else super().xcom_pull(task_ids, key)


@pytest.mark.parametrize("reported", [False, True])
def test_what_an_ended_task_still_creates_is_removed_as_well(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, reported: bool
) -> None:
    pod(cluster, "early", "probe")
    pause = time.sleep

    def sleep(seconds: float) -> None:
        if seconds == validation_cleanup.ENDS_WITHIN_S:
            pod(cluster, "late", "probe")
        else:
            pause(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    ti = (TaskInstance if reported else EndedFromOutside)(spec=spec_at(str(cluster.access.path)))
    ti.task_states = {"protect": "success", "sharing": "failed"}
    ti.xcoms = {"summary": {"outcome": "Failed"}}
    with DAG("gpu_revalidate.demo", start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        clean = CleanUpValidationOperator(task_id="clean_up", node_pool=POOL)
        protect = ProtectNodesOperator(task_id="protect", node_pool=POOL)
        protect >> RunProbesOperator(task_id="sharing", node_pool=POOL, probe="sharing") >> clean
    assert clean.execute(context(ti))["pods"] == (["early"] if reported else ["early", "late"])


def stuck(cluster: SandboxCluster, name: str, on: str, *, ready: bool) -> ObjectRef:
    """A probe pod that its node's kubelet does not end: a finalizer stands for a process that hangs."""
    labels = {LABEL_COMPONENT: "probe", LABEL_POOL: POOL}
    metadata: dict[str, Any] = {"name": name, "namespace": VALIDATION_NAMESPACE, "labels": labels}
    body = {
        "nodeName": on,
        "nodeSelector": {"kubernetes.io/hostname": on},
        "terminationGracePeriodSeconds": 600,
        "containers": [{"name": "one", "image": "pause"}],
    }
    if ready:
        metadata["finalizers"] = ["test/hangs"]
    cluster.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body})
    node(cluster, on, PROTECTED)
    condition = {"type": "Ready", "status": "True" if ready else "Unknown", "reason": "Because"}
    cluster.kube.patch(ObjectRef(NODE, on), {"status": {"conditions": [condition]}}, subresource="status")
    return ObjectRef(POD, name, VALIDATION_NAMESPACE)


def impatient(cluster: SandboxCluster) -> Any:
    value = spec_at(str(cluster.access.path)).to_json()
    value["deadlines"]["cleanup"] = "1s"
    spec = type(spec_at(str(cluster.access.path))).model_validate(value)
    return CleanUpValidationOperator(task_id="clean_up", node_pool=POOL).execute(context(TaskInstance(spec=spec)))


def test_a_pod_on_a_node_that_is_not_ready_is_deleted_by_force(cluster: SandboxCluster) -> None:
    ref = stuck(cluster, "silent", "dead", ready=False)
    assert impatient(cluster)["unprotected"] == ["dead"]
    assert cluster.kube.get(ref) is None


def test_a_pod_that_stays_on_a_ready_node_is_named_when_all_else_is_done(cluster: SandboxCluster) -> None:
    ref = stuck(cluster, "hangs", "alive", ready=True)
    pod(cluster, "placeholder", "placeholder")
    try:
        with pytest.raises(TransientError, match="alive: hangs") as raised:
            impatient(cluster)
    finally:
        cluster.kube.patch(ref, {"metadata": {"finalizers": None}})
    assert raised.value.reason == "ProbesStay"
    assert annotations(cluster, "alive") == {}
    assert "placeholder" not in {item["metadata"]["name"] for item in cluster.kube.list(POD)}


def claim(cluster: SandboxCluster, name: str, waiting: tuple[str, str, str] | None, pool: str = POOL) -> None:
    made = claim_object(name, waiting=waiting, pool=pool)
    made["metadata"]["labels"]["node.kubernetes.io/instance-type"] = "g5.xlarge"
    made["metadata"]["labels"]["karpenter.sh/capacity-type"] = "on-demand"
    made["spec"] = {
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": pool},
        "requirements": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}],
    }
    cluster.kube.create(made)
    cluster.kube.patch(ObjectRef(NODE_CLAIM, name), {"status": made["status"]}, subresource="status")


@pytest.mark.parametrize(
    ("capacity", "named"), [("failed", True), ("upstream_failed", True), ("success", False), ("skipped", False)]
)
def test_nodes_that_nobody_will_remove_are_named_with_their_price(
    monkeypatch: pytest.MonkeyPatch, cluster: SandboxCluster, capacity: str, named: bool
) -> None:
    waits = ("Initialized", "ResourceNotRegistered", 'Resource "nvidia.com/gpu" was requested but not registered')
    claim(cluster, "stuck", waits)
    claim(cluster, "done", None)
    claim(cluster, "of-the-other", waits, OTHER)
    ti = TaskInstance(spec=spec_at(str(cluster.access.path)))
    ti.task_states = {"await": capacity}
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with DAG("gpu_lifecycle.demo", start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        clean = CleanUpValidationOperator(task_id="clean_up", node_pool=POOL)
        AwaitCapacityOperator(task_id="await", node_pool=POOL) >> clean
    found = clean.execute(context(ti))["unfinished"]
    assert [each["nodeClaim"] for each in found] == (["stuck"] if named else [])
    if named:
        assert found[0]["usdPerHour"] == pytest.approx(1.006)
        told = ti.xcoms[validation_cleanup.STILL_PAID]
        for part in ("NodeClaim stuck (g5.xlarge, 1.01 USD/h", "ResourceNotRegistered", "gpu_teardown.demo"):
            assert part in told
    else:
        assert ti.xcoms == {}


class EndedWhileAsking(TaskInstance):
    """Of a run that was marked failed before any of these tasks left something."""

    def xcom_pull(self, task_ids: str | None = None, key: str = "return_value") -> Any:
        return self._frozen if task_ids == "freeze_spec" else self.xcoms.get(f"{task_ids}/{key}")


@pytest.mark.parametrize(
    ("failed", "left", "looked"),
    [
        ("request", {}, 2),
        ("wait", {}, 2),
        ("wait", {f"wait/{FAILURE}": {"reason": "DeadlinePassed"}}, 1),
    ],
    ids=["asking was cut short", "waiting was cut short", "waiting ended by itself"],
)
def test_capacity_that_an_ended_task_still_asks_for_is_given_back_as_well(
    monkeypatch: pytest.MonkeyPatch, failed: str, left: dict[str, Any], looked: int
) -> None:
    looks: list[str] = []

    def remove(operator: CleanUpValidationOperator) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        looks.append(operator.node_pool)
        return {"pods": [], "placeholders": [], "unprotected": []}, {}

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(CleanUpValidationOperator, "_remove", remove)
    monkeypatch.setattr(CleanUpValidationOperator, "_unfinished", lambda *_: [])
    ti = EndedWhileAsking()
    ti.task_states, ti.xcoms = {"request": "success", "wait": "skipped", failed: "failed"}, left
    with DAG("gpu_lifecycle.demo", start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        clean = CleanUpValidationOperator(task_id="clean_up", node_pool=POOL)
        wait = AwaitCapacityOperator(task_id="wait", node_pool=POOL)
        RequestCapacityOperator(task_id="request", node_pool=POOL) >> wait >> clean
    clean.spec = demo_spec()
    clean.act(context(ti))
    assert len(looks) == looked
