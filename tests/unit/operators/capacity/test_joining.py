"""Nodes that EKS does not let in, and a Karpenter without credentials: the true cause is named, and not waited for.

What preflight has found may be gone by then, so it is taken away after it. The sandbox's Karpenter and nodes run here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import GateRefused, NotFound
from gpu_fleet.core.gates.capacity import pool as gate_rules
from gpu_fleet.core.kubernetes.kinds import DEPLOYMENT, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.aws import aws_session
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.helm.releases import InstallReleaseOperator
from gpu_fleet.operators.objects.apply import ApplyManifestsOperator
from gpu_fleet.operators.objects.node_pools import ApplyNodePoolOperator
from gpu_fleet.operators.pool import FAILURE
from gpu_fleet.operators.preflight.prerequisites import CheckPrerequisitesOperator
from gpu_fleet.triggers.looking import look
from tests.e2e.helm_world import helm_binary
from tests.unit.airflow_context import TaskInstance
from tests.unit.core.specs import demo_mapping
from tests.unit.operators.whole_fleet import run
from tests.unit.sandboxed import whole_sandbox

pytestmark = [pytest.mark.real_helm, pytest.mark.timeout(300)]

POOL, SPEED = "shared-a10g", 30.0
ROLE = "arn:aws:iam::123456789012:role/KarpenterNodeRole-demo-gpu"


def fleet() -> ClusterSpec:
    value = demo_mapping(karpenter__nodeOverlays=False)
    value["nodePools"] = [{**value["nodePools"][0], "wantedNodes": 1, "capacityTypes": ["on-demand"]}]
    value["deadlines"] = {"capacity": "3m"}
    return ClusterSpec.model_validate(value)


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeClient]:
    monkeypatch.setenv("HELM_BIN", helm_binary())
    monkeypatch.setenv("GPU_FLEET_CHART_CACHE", str(tmp_path / "charts"))
    with whole_sandbox(tmp_path / "sandbox", speed=SPEED) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield KubernetesHook(ClusterAccess.from_spec(fleet())).client()


def until(spec: ClusterSpec, gate: str, **args: Any) -> Any:
    """The gate's first verdict that is not Progressing."""
    began = time.time()
    while True:
        verdict = look(gate, args, ClusterAccess.from_spec(spec), started=began)
        if verdict.ready or verdict.failed:
            return verdict
        assert time.time() - began < 90, verdict.message
        time.sleep(0.2)


def install(spec: ClusterSpec) -> None:
    for component in ("karpenter-crd", "karpenter"):
        run(InstallReleaseOperator(task_id="install", component=component), spec)


def ask(spec: ClusterSpec, ti: TaskInstance) -> AwaitCapacityOperator:
    """A node is asked for; the task that waits for it."""
    for builder in ("system_namespaces", "runtime_class"):
        run(ApplyManifestsOperator(task_id="apply", builder=builder), spec)
    run(ApplyManifestsOperator(task_id="apply", builder="node_class", builder_args={"pool": POOL}), spec)
    assert until(spec, "node_class_ready", name=POOL).ready
    run(ApplyNodePoolOperator(task_id="apply", node_pool=POOL), spec)
    assert until(spec, "node_pool_ready", name=POOL).ready
    run(RequestCapacityOperator(task_id="request", node_pool=POOL), spec, ti)
    return AwaitCapacityOperator(task_id="await", node_pool=POOL)


def test_an_access_entry_that_is_deleted_after_preflight_is_named_and_the_node_joins_once_it_is_back(
    kube: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Simulated time runs faster than the gate's clock.
    monkeypatch.setattr(gate_rules, "JOIN_PATIENCE_S", 300.0 / SPEED)
    spec = fleet()
    aws = aws_session(spec.aws.connection, spec.region)
    assert run(CheckPrerequisitesOperator(task_id="check"), spec)["unknown"] == 0
    aws.call("eks", "delete_access_entry", clusterName="demo-gpu", principalArn=ROLE)
    install(spec)
    assert until(spec, "karpenter_available", namespace="kube-system").ready
    ti = TaskInstance(spec=spec)
    waits = ask(spec, ti)
    with pytest.raises(GateRefused) as caught:
        run(waits, spec, ti)
    assert caught.value.reason == ti.xcoms[FAILURE]["reason"] == "NodeRoleNotAdmitted"
    for words in ("KarpenterNodeRole-demo-gpu has none", "aws eks create-access-entry", "clear this task"):
        assert words in caught.value.message

    (claim, *_) = kube.list(NODE_CLAIM)
    aws.call("eks", "create_access_entry", clusterName="demo-gpu", principalArn=ROLE, type="EC2_LINUX")
    began = time.time()
    while not any((item.get("status") or {}).get("nodeName") for item in kube.list(NODE_CLAIM)):
        assert time.time() - began < 60, claim
        time.sleep(0.2)


def test_an_association_that_is_deleted_after_preflight_is_named_and_karpenter_serves_after_a_restart(
    kube: KubeClient,
) -> None:
    spec = fleet()
    aws = aws_session(spec.aws.connection, spec.region)
    run(CheckPrerequisitesOperator(task_id="check"), spec)
    (found,) = aws.paginate("eks", "list_pod_identity_associations", "associations", clusterName="demo-gpu")
    aws.call("eks", "delete_pod_identity_association", clusterName="demo-gpu", associationId=found["associationId"])
    install(spec)
    verdict = until(spec, "karpenter_available", namespace="kube-system")
    assert (verdict.reason, verdict.permanent) == ("KarpenterWithoutCredentials", True)
    command = (
        "create-pod-identity-association --cluster-name demo-gpu --namespace kube-system --service-account karpenter"
    )
    assert command in verdict.message

    aws.call(
        "eks",
        "create_pod_identity_association",
        clusterName="demo-gpu",
        namespace="kube-system",
        serviceAccount="karpenter",
        roleArn="arn:aws:iam::123456789012:role/KarpenterControllerRole-demo-gpu",
    )
    restart = {"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}}}
    kube.patch(ObjectRef(DEPLOYMENT, "karpenter", "kube-system"), restart)
    for pod in kube.list(POD, "kube-system", label_selector="app.kubernetes.io/name=karpenter"):
        try:
            kube.delete(ObjectRef(POD, pod["metadata"]["name"], "kube-system"))
        except NotFound:
            continue
    began = time.time()
    while not (
        verdict := look("karpenter_available", {"namespace": "kube-system"}, ClusterAccess.from_spec(spec))
    ).ready:
        assert time.time() - began < 60, verdict.message
        time.sleep(0.2)
