"""NodePool and NodeOverlay of a pool, applied together; and the burst that proves what the overlay is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import GateRefused, PermanentError
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, NODE_OVERLAY, NODE_POOL, POD, Kind, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL, SYSTEM_NAMESPACE
from gpu_fleet.core.manifests.overlays import WEIGHT
from gpu_fleet.core.verdict import ready
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.capacity.burst import BURST, RequestSharedCapacityOperator
from gpu_fleet.operators.objects.node_pools import ApplyNodePoolOperator
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import define_karpenter, sandbox_cloud

POOL = "shared-a10g"
OVERLAY = ObjectRef(NODE_OVERLAY, f"gpu-fleet-{POOL}")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeClient]:
    """A cluster with Karpenter's CRDs and no controllers, and its AWS account."""
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(tmp_path_factory.mktemp("cloud")) as found:
        environment.setenv("AIRFLOW_CONN_AWS_DEMO", found.connection)
        kube = KubernetesHook(ClusterAccess.from_spec(demo_spec())).client()
        define_karpenter(kube)
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        kube.apply(account | {"metadata": {"name": "default", "namespace": SYSTEM_NAMESPACE}})
        yield kube


@pytest.fixture
def kube(cloud: KubeClient) -> Iterator[KubeClient]:
    yield cloud
    for kind in (NODE_POOL, NODE_OVERLAY, NODE_CLAIM, NODE):
        for item in cloud.list(kind):
            cloud.delete(ObjectRef(kind, item["metadata"]["name"]))
    for pod in cloud.list(POD):
        cloud.delete(ObjectRef(POD, pod["metadata"]["name"], pod["metadata"]["namespace"]), grace_seconds=0)


def apply(**changes: Any) -> Any:
    operator = ApplyNodePoolOperator(task_id="apply_node_pool", node_pool=POOL)
    return operator.execute(context(TaskInstance(spec=demo_spec(**changes))))


def spec_of(kube: KubeClient, kind: Kind, name: str) -> dict[str, Any]:
    return dict((kube.get(ObjectRef(kind, name)) or {"spec": {}})["spec"])


def test_a_shared_pool_has_its_overlay_before_it_is_there(kube: KubeClient) -> None:
    assert apply()["created"] == [f"NodeOverlay gpu-fleet-{POOL}", f"NodePool {POOL}"]
    assert spec_of(kube, NODE_OVERLAY, OVERLAY.name)["capacity"] == {"nvidia.com/gpu": "4"}
    assert spec_of(kube, NODE_POOL, POOL)["limits"] == {"nodes": "4", "cpu": "16"}
    assert spec_of(kube, NODE_POOL, POOL)["weight"] == 1
    assert apply()["unchanged"] == [f"NodeOverlay gpu-fleet-{POOL}", f"NodePool {POOL}"]


@pytest.mark.parametrize(
    "changes",
    [{"nodePools__0__sharing": {"mode": "exclusive"}}, {"karpenter__nodeOverlays": False}],
    ids=["the pool no longer shares", "overlays are switched off"],
)
def test_an_overlay_without_use_goes_after_the_pool_has_changed(kube: KubeClient, changes: dict[str, Any]) -> None:
    apply()
    assert apply(**changes)["deleted"] == [str(OVERLAY)]
    assert kube.get(OVERLAY) is None
    assert apply(**changes)["deleted"] == []


def test_an_overlay_of_that_name_that_is_not_ours_stays(kube: KubeClient) -> None:
    theirs(kube, OVERLAY.name, weight=1)
    assert apply(karpenter__nodeOverlays=False)["deleted"] == []
    assert kube.get(OVERLAY) is not None


def theirs(kube: KubeClient, name: str, weight: int) -> None:
    requirement = {"key": "karpenter.k8s.aws/instance-family", "operator": "In", "values": ["g5"]}
    spec = {"requirements": [requirement], "capacity": {"nvidia.com/gpu": "2"}, "weight": weight}
    kube.create(
        {"apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay", "metadata": {"name": name}, "spec": spec}
    )


def test_a_conflict_with_an_overlay_of_others_is_named_before_anything_is_applied(kube: KubeClient) -> None:
    theirs(kube, "gpus-of-team-b", WEIGHT)
    with pytest.raises(PermanentError, match="NodeOverlay gpus-of-team-b also has weight 10000") as raised:
        apply()
    assert raised.value.reason == "OverlayConflict"
    assert kube.get(OVERLAY) is None
    assert kube.get(ObjectRef(NODE_POOL, POOL)) is None


def test_a_lighter_overlay_of_others_is_no_obstacle_and_stays(kube: KubeClient) -> None:
    theirs(kube, "gpus-of-team-b", 100)
    apply()
    assert sorted(item["metadata"]["name"] for item in kube.list(NODE_OVERLAY)) == [OVERLAY.name, "gpus-of-team-b"]


# --- burst ------------------------------------------------------------------------------------------------------------


def claim(kube: KubeClient, name: str) -> None:
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}
    kube.create(
        {
            "apiVersion": "karpenter.sh/v1",
            "kind": "NodeClaim",
            "metadata": {"name": name, "labels": {LABEL_NODE_POOL: POOL}},
            "spec": {"nodeClassRef": reference, "requirements": []},
        }
    )


def names(kube: KubeClient, kind: Kind) -> list[str]:
    return sorted(item["metadata"]["name"] for item in kube.list(kind))


def burst(**changes: Any) -> tuple[RequestSharedCapacityOperator, dict[str, Any], TaskInstance]:
    instance = TaskInstance(spec=demo_spec(**changes))
    found = context(instance)
    found["params"] = {**found.get("params", {}), "proveBurst": True}
    return RequestSharedCapacityOperator(task_id="request", node_pool=POOL), found, instance


def test_without_the_param_there_is_no_burst(kube: KubeClient) -> None:
    operator, found, _ = burst()
    found["params"] = {}
    assert operator.execute(found)["created"] == [f"placeholder-{POOL}-0", f"placeholder-{POOL}-1"]
    assert [name for name in names(kube, POD) if name.startswith("burst")] == []


def test_twice_the_shares_of_a_node_are_asked_for_at_once(kube: KubeClient) -> None:
    operator, found, _ = burst()
    with pytest.raises(TaskDeferred):
        operator.execute(found)
    pods = [pod for pod in kube.list(POD) if pod["metadata"]["name"].startswith("burst-")]
    assert len(pods) == 8
    assert {pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in pods} == {"1"}
    assert all(pod["spec"]["nodeSelector"] == {LABEL_NODE_POOL: POOL} for pod in pods)
    # A killed try goes on with what it has begun.
    with pytest.raises(TaskDeferred):
        operator.execute(found)
    assert len([name for name in names(kube, POD) if name.startswith("burst-")]) == 8


def test_too_many_node_claims_fail_the_task_and_are_removed(kube: KubeClient) -> None:
    operator, found, _ = burst()
    with pytest.raises(TaskDeferred):
        operator.execute(found)
    for number in range(4):
        claim(kube, f"c{number}")
    with pytest.raises(GateRefused, match=r"8 pods of one share each bought 4 NodeClaims .* instead of 2") as raised:
        operator.execute(found)
    assert raised.value.reason == "BurstBoughtTooMany"
    assert names(kube, NODE_CLAIM) == []
    assert names(kube, POD) == []


def test_after_a_good_burst_only_what_the_pool_wants_stays(kube: KubeClient) -> None:
    operator, found, instance = burst(nodePools__0__wantedNodes=1)
    with pytest.raises(TaskDeferred):
        operator.execute(found)
    claim(kube, "c0")
    claim(kube, "c1")
    event = {"type": "ready", "gate": "burst", "verdict": ready("BurstFits", "fits", nodes=["c0", "c1"]).to_json()}
    operator.after_burst(found, event)
    assert instance.xcom_pull(task_ids="request", key=BURST) == {"pods": 8, "nodes": ["c0", "c1"]}
    assert names(kube, NODE_CLAIM) == ["c0"]
    assert [name for name in names(kube, POD) if name.startswith("burst")] == []


@pytest.mark.parametrize(
    ("changes", "standing", "reason"),
    [
        ({}, True, "is not empty (n1)"),
        ({"nodePools__0__limits": {"nodes": 2}}, False, "limits.nodes of pool shared-a10g is 2"),
        (
            {"nodePools__0__instanceTypes": ["g5.48xlarge"], "nodePools__0__sharing__replicas": 40},
            False,
            "more than 256",
        ),
    ],
)
def test_a_burst_that_would_prove_nothing_is_left_out_with_the_reason(
    kube: KubeClient, changes: dict[str, Any], standing: bool, reason: str
) -> None:
    if standing:
        kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {LABEL_NODE_POOL: POOL}}})
    operator, found, instance = burst(**changes)
    assert "created" in operator.execute(found)
    assert reason in instance.xcom_pull(task_ids="request", key=BURST)["skipped"]
    assert [name for name in names(kube, POD) if name.startswith("burst")] == []
