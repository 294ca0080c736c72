"""Plan, freeze, delete and leak check on the sandbox's AWS and API server, without its controllers and Karpenter.

Deletions end when the test says so, as with the drain; what a controller would do is a test's own line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import (
    ApiUnavailable,
    Forbidden,
    GateRefused,
    GpuFleetError,
    LeakFound,
    NotFound,
    PermanentError,
)
from gpu_fleet.core.kubernetes.kinds import (
    DEPLOYMENT,
    EC2_NODE_CLASS,
    NODE,
    NODE_CLAIM,
    NODE_OVERLAY,
    NODE_POOL,
    POD,
    Kind,
    ObjectRef,
)
from gpu_fleet.core.kubernetes.names import ANNOTATION_FROZEN_LIMITS, FINALIZER_TERMINATION
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.aws import AwsSession, aws_session
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.teardown.delete import DeleteNodeClassesOperator
from gpu_fleet.operators.teardown.freeze import FreezePoolsOperator
from gpu_fleet.operators.teardown.leaks import LeakCheckOperator
from gpu_fleet.operators.teardown.node_pools import FINALIZER_NODE_CLASS, DeleteNodePoolsOperator
from gpu_fleet.operators.teardown.plan import PlanTeardownOperator
from gpu_fleet.sensors.gate import GateSensor
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import define_karpenter, sandbox_cloud

POOL = "shared-a10g"
EMERGENCY = {"teardown__whenKarpenterIsDead": "emergency"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KubeClient, AwsSession]]:
    """A cluster with Karpenter's CRDs, and its AWS account."""
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(tmp_path_factory.mktemp("cloud")) as cloud:
        environment.setenv("AIRFLOW_CONN_AWS_DEMO", cloud.connection)
        spec = demo_spec()
        kube = KubernetesHook(ClusterAccess.from_spec(spec)).client()
        define_karpenter(kube)
        yield kube, aws_session(spec.aws.connection, spec.aws.region)


@pytest.fixture
def kube(world: tuple[KubeClient, AwsSession]) -> Iterator[KubeClient]:
    """The cluster; afterwards everything that a test made is gone."""
    client, aws = world
    yield client
    # What has ended is forgotten some time later: asking for its end may come too late.
    found = aws.paginate("ec2", "describe_instances", "Reservations.Instances")
    ids = [i["InstanceId"] for i in found if i["State"]["Name"] != "terminated"]
    if ids:
        aws.call("ec2", "terminate_instances", InstanceIds=ids)
    for kind in (NODE_POOL, NODE_CLAIM, EC2_NODE_CLASS, NODE_OVERLAY, NODE):
        for item in client.list(kind):
            remove(client, kind, item["metadata"]["name"])
    client.delete(ObjectRef(DEPLOYMENT, "karpenter", "kube-system"))
    for pod in client.list(POD):
        metadata = pod["metadata"]
        client.delete(ObjectRef(POD, metadata["name"], metadata["namespace"]), grace_seconds=0)


@pytest.fixture
def aws(world: tuple[KubeClient, AwsSession]) -> AwsSession:
    return world[1]


def remove(kube: KubeClient, kind: Kind, name: str) -> None:
    """What the controllers do in the end."""
    ref = ObjectRef(kind, name)
    kube.delete(ref)
    if kube.get(ref) is not None:
        kube.patch(ref, {"metadata": {"finalizers": None}})


def pool(kube: KubeClient, name: str = POOL) -> None:
    for manifest in (*build("node_class", demo_spec(), pool=name), *build("node_pool", demo_spec(), pool=name)):
        kube.apply(manifest)


def foreign_pool(kube: KubeClient) -> None:
    manifest = build("node_pool", demo_spec(), pool=POOL)[0]
    manifest["metadata"] = {"name": "cpu"}
    kube.apply(manifest, field_manager="somebody")


def claim(kube: KubeClient, name: str, pool_name: str | None = POOL) -> None:
    manifest = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {
            "name": name,
            "labels": {"karpenter.sh/nodepool": pool_name} if pool_name else {},
            "finalizers": [FINALIZER_TERMINATION],
        },
        "spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL},
            "requirements": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}],
        },
    }
    kube.create(manifest)


def node(kube: KubeClient, name: str, pool_name: str = POOL) -> None:
    labels = {"karpenter.sh/nodepool": pool_name}
    metadata = {"name": name, "labels": labels, "finalizers": [FINALIZER_TERMINATION]}
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata})


def instance(
    aws: AwsSession, pool_name: str = POOL, kind: str = "g5.xlarge", *, file: str | None = "demo", claim: str = "c"
) -> str:
    """An instance that Karpenter launched.

    :param file: the cluster file whose EC2NodeClass it was launched with; ``None`` for another team's.
    """
    tags = {
        "kubernetes.io/cluster/demo-gpu": "owned",
        "karpenter.sh/nodepool": pool_name,
        "karpenter.sh/nodeclaim": claim,
        **({"gpu-fleet.io/cluster": file, "gpu-fleet.io/pool": pool_name} if file else {}),
    }
    image = aws.paginate("ec2", "describe_images", "Images")[0]["ImageId"]
    answer = aws.call(
        "ec2",
        "run_instances",
        ImageId=image,
        InstanceType=kind,
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]},
        ],
    )
    return str(answer["Instances"][0]["InstanceId"])


def state(aws: AwsSession, name: str) -> str:
    (found,) = aws.paginate("ec2", "describe_instances", "Reservations.Instances", InstanceIds=[name])
    return str(found["State"]["Name"])


def karpenter(kube: KubeClient, *, ready: bool = True) -> None:
    """A controller's pod."""
    metadata = {
        "name": "karpenter-0",
        "namespace": "kube-system",
        "labels": {"app.kubernetes.io/name": "karpenter"},
    }
    spec = {"containers": [{"name": "controller", "image": "x"}]}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    status = {"phase": "Running", "conditions": conditions}
    kube.patch(ObjectRef(POD, "karpenter-0", "kube-system"), {"status": status}, subresource="status")


def run(operator_class: Any, spec: ClusterSpec | None = None) -> dict[str, Any]:
    operator = operator_class(task_id="task")
    return operator.execute(context(TaskInstance(spec=spec or demo_spec())))  # type: ignore[no-any-return]


def deleting(kube: KubeClient, kind: Kind, name: str) -> bool:
    found = kube.get(ObjectRef(kind, name))
    return found is None or bool(found["metadata"].get("deletionTimestamp"))


# --- plan -------------------------------------------------------------------------------------------------------------


def test_the_plan_of_an_empty_cluster_is_empty(kube: KubeClient) -> None:
    result = run(PlanTeardownOperator)
    assert result["plan"]["way"] == "NothingLeft"
    assert "Nothing to remove" in result["markdown"]


def test_the_plan_names_and_prices_what_is_there(kube: KubeClient, aws: AwsSession) -> None:
    pool(kube)
    foreign_pool(kube)
    claim(kube, "c1")
    node(kube, "n1")
    karpenter(kube)
    mine, other = instance(aws), instance(aws, "cpu")
    result = run(PlanTeardownOperator, demo_spec(teardown__uninstallKarpenter=False))
    plan = result["plan"]
    assert (plan["pools"], plan["nodeClaims"], plan["nodes"]) == ([POOL], ["c1"], ["n1"])
    assert [row["id"] for row in plan["instances"]] == [mine]
    (volume,) = plan["volumes"]
    assert (volume["instance"], volume["goes"]) == (mine, True)
    assert plan["usdPerHour"] == pytest.approx(1.006 + (volume["usdPerHour"] or 0.0))
    assert (plan["way"], plan["keptPools"]) == ("ByKarpenter", ["cpu"])
    assert mine in result["markdown"]
    assert other not in result["markdown"]
    json.dumps(result)


def test_a_plan_that_uninstalls_nothing_needs_no_secrets(kube: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The narrow permissions of the deployment guide hold none for Secrets."""

    def refuse(self: KubeClient, kind: Kind, *args: Any, **kwargs: Any) -> Any:
        raise Forbidden(f"cannot list {kind.plural}")

    monkeypatch.setattr(KubeClient, "list_metadata", refuse)
    kept = demo_spec(karpenter__manage=False, devicePlugin__manage=False)
    assert run(PlanTeardownOperator, kept)["plan"]["releases"] == []
    with pytest.raises(Forbidden, match="secrets"):
        run(PlanTeardownOperator)


def test_karpenter_must_not_go_while_pools_of_others_live_on(kube: KubeClient) -> None:
    pool(kube)
    foreign_pool(kube)
    with pytest.raises(PermanentError, match=r"NodePools cpu .* set teardown.uninstallKarpenter: false") as refused:
        run(PlanTeardownOperator)
    assert refused.value.reason == "KarpenterStillNeeded"


@pytest.mark.parametrize("approved", [None, "plan"])
def test_karpenter_must_not_go_while_other_objects_of_its_kinds_live_on(kube: KubeClient, approved: str | None) -> None:
    """Afterwards nobody would serve the finalizer of such a class, and the CRDs cannot go as long as it exists."""
    pool(kube)
    node_class(kube, "of-another", "other")
    node_class(kube, "of-nobody", None)
    overlay = {"requirements": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}
    kube.create(
        {"apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay", "metadata": {"name": "dear"}, "spec": overlay}
    )
    operator = PlanTeardownOperator(task_id="plan", approved_task_id=approved)
    names = "EC2NodeClasses of-another, of-nobody and NodeOverlays dear "
    with pytest.raises(PermanentError, match=rf"{names}.*set teardown.uninstallKarpenter: false") as refused:
        operator.execute(context(TaskInstance(spec=demo_spec())))
    assert (refused.value.reason, POOL in refused.value.message) == ("KarpenterStillNeeded", False)
    karpenter(kube)
    assert run(PlanTeardownOperator, demo_spec(teardown__uninstallKarpenter=False))["plan"]["pools"] == [POOL]


def controller(kube: KubeClient, label: str | None, image: str = "") -> None:
    """Karpenter's Deployment."""
    labels = {"app.kubernetes.io/name": "karpenter"}
    pod = {"containers": [{"name": "controller", "image": image or "x"}]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    metadata = {
        "name": "karpenter",
        "namespace": "kube-system",
        "labels": {**labels, "app.kubernetes.io/version": label} if label else labels,
    }
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    kube.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})


MIRROR = "registry.example:5000/karpenter/controller"


@pytest.mark.parametrize(
    ("label", "image", "old"),
    [
        ("1.10.3", "", "1.10.3"),
        ("1.11.0", "", None),
        ("1.14.1", f"{MIRROR}:1.0.0", None),
        (None, f"{MIRROR}:1.9.0@sha256:00", "1.9.0"),
        (None, f"{MIRROR}:v1.12.0", None),
        (None, "registry.example:5000/our/own:1.0", None),
        ("newest", "", None),
    ],
)
def test_no_plan_is_made_that_a_karpenter_of_somebody_else_would_not_freeze(
    kube: KubeClient, label: str | None, image: str, old: str | None
) -> None:
    """The file's version is checked with the file; where Karpenter is not ours it is only what somebody wrote there."""
    pool(kube)
    karpenter(kube)
    controller(kube, label, image)
    spec = demo_spec(karpenter__manage=False)
    if old is None:
        assert run(PlanTeardownOperator, spec)["plan"]["way"] == "ByKarpenter"
        return
    with pytest.raises(PermanentError, match=rf"Karpenter {old} .*upgrade it to 1\.11 or later") as refused:
        run(PlanTeardownOperator, spec)
    assert refused.value.reason == "KarpenterTooOld"


@pytest.mark.parametrize("approved", [None, "plan"])
def test_no_plan_is_made_that_a_dead_karpenter_would_stop_after_the_drain(
    kube: KubeClient, approved: str | None
) -> None:
    pool(kube)
    karpenter(kube, ready=False)
    operator = PlanTeardownOperator(task_id="plan", approved_task_id=approved)
    with pytest.raises(PermanentError, match=rf"NodePools {POOL}; .*whenKarpenterIsDead: emergency") as refused:
        operator.execute(context(TaskInstance(spec=demo_spec())))
    assert refused.value.reason == "KarpenterDead"
    assert run(PlanTeardownOperator, demo_spec(**EMERGENCY))["plan"]["way"] == "Emergency"


def test_the_plan_after_the_approval_may_shrink_and_not_grow(kube: KubeClient, aws: AwsSession) -> None:
    pool(kube)
    karpenter(kube)
    gone = instance(aws)
    ti = TaskInstance(spec=demo_spec())
    ti.xcoms["return_value"] = PlanTeardownOperator(task_id="plan").execute(context(ti))
    aws.call("ec2", "terminate_instances", InstanceIds=[gone])
    again = PlanTeardownOperator(task_id="plan_again", approved_task_id="plan")
    assert again.execute(context(ti))["plan"]["instances"] == []
    new = instance(aws)
    with pytest.raises(PermanentError, match=rf"would also remove instance {new} .*clear plan") as refused:
        again.execute(context(ti))
    assert refused.value.reason == "PlanGrew"


# --- freeze -----------------------------------------------------------------------------------------------------------


def test_a_freeze_closes_our_pools_remembers_their_limits_and_leaves_others(kube: KubeClient) -> None:
    pool(kube)
    foreign_pool(kube)
    assert run(FreezePoolsOperator) == {"frozen": [POOL], "already": [], "pods": []}
    frozen = kube.get(ObjectRef(NODE_POOL, POOL)) or {}
    assert frozen["spec"]["limits"] == {"nodes": "0", "cpu": "16"}
    before = {"nodes": "4", "cpu": "16"}
    assert json.loads(frozen["metadata"]["annotations"][ANNOTATION_FROZEN_LIMITS]) == before
    assert (kube.get(ObjectRef(NODE_POOL, "cpu")) or {})["spec"]["limits"] == before


def test_a_second_freeze_changes_nothing(kube: KubeClient) -> None:
    pool(kube)
    run(FreezePoolsOperator)
    before = kube.get(ObjectRef(NODE_POOL, POOL))
    assert run(FreezePoolsOperator) == {"frozen": [], "already": [POOL], "pods": []}
    assert kube.get(ObjectRef(NODE_POOL, POOL)) == before


def test_a_freeze_leaves_the_template_alone_and_applying_the_pool_takes_it_back(kube: KubeClient) -> None:
    pool(kube)
    before = (kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"]
    run(FreezePoolsOperator)
    frozen = (kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"]
    assert frozen["template"] == before["template"]
    pool(kube)
    after = kube.get(ObjectRef(NODE_POOL, POOL)) or {}
    assert after["spec"] == before
    assert ANNOTATION_FROZEN_LIMITS not in (after["metadata"].get("annotations") or {})


def test_a_freeze_takes_over_nothing_that_somebody_else_set(kube: KubeClient) -> None:
    name = "whole-a100"  # the dearest: it has no weight of ours
    pool(kube, name)
    theirs = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": name}, "spec": {"weight": 10}}
    kube.apply(theirs, field_manager="flux")
    run(FreezePoolsOperator)
    frozen = kube.get(ObjectRef(NODE_POOL, name)) or {}
    assert (frozen["spec"]["weight"], frozen["spec"]["limits"]) == (10, {"nodes": "0", "cpu": "192"})
    pool(kube, name)  # takes the freeze back, and would remove what the freeze had taken over
    after = kube.get(ObjectRef(NODE_POOL, name)) or {}
    assert (after["spec"]["weight"], after["spec"]["limits"]) == (10, {"nodes": "2", "cpu": "192"})
    kube.apply({**theirs, "spec": {"weight": 20}}, field_manager="flux")  # no conflict with us


def test_own_pods_that_wait_for_a_node_go_with_the_freeze_and_no_others(kube: KubeClient) -> None:
    """A drain meets only what runs on a node; a waiting placeholder would buy one as soon as the pool is open again."""
    pool(kube)
    mine = {"gpu-fleet.io/cluster": "demo", "gpu-fleet.io/pool": POOL, "gpu-fleet.io/component": "placeholder"}
    pod(kube, "waiting", mine)
    pod(kube, "on-a-node", mine, node="node-1")
    pod(kube, "of-another-cluster", {**mine, "gpu-fleet.io/cluster": "other"})
    pod(kube, "of-a-user", {})
    assert run(FreezePoolsOperator)["pods"] == ["Pod default/waiting"]
    left = {item["metadata"]["name"] for item in kube.list(POD, "default")}
    assert left == {"on-a-node", "of-another-cluster", "of-a-user"}


def pod(kube: KubeClient, name: str, labels: dict[str, str], node: str | None = None) -> None:
    spec: dict[str, Any] = {"containers": [{"name": "pause", "image": "pause"}]}
    if node:
        spec["nodeName"] = node
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": spec,
        }
    )


def test_a_limit_of_somebody_else_does_not_keep_a_pool_open(kube: KubeClient) -> None:
    pool(kube)
    kube.patch(ObjectRef(NODE_POOL, POOL), {"spec": {"limits": {"nodes": "9"}}}, field_manager="kubectl-edit")
    run(FreezePoolsOperator)
    assert (kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"]["limits"] == {"nodes": "0", "cpu": "16"}


# --- overlays ---------------------------------------------------------------------------------------------------------


def overlay(kube: KubeClient, name: str, labels: dict[str, str]) -> None:
    [manifest] = build("node_overlay", demo_spec(), pool=POOL)
    manifest["metadata"] = {"name": name, "labels": labels}
    kube.apply(manifest)


def test_our_overlays_go_with_the_pools_and_those_of_others_stay(kube: KubeClient) -> None:
    overlay(kube, "gpu-fleet-shared-a10g", {"gpu-fleet.io/cluster": "demo"})
    overlay(kube, "gpu-fleet-of-a-pool-that-left-the-file", {"gpu-fleet.io/cluster": "demo"})
    overlay(kube, "gpu-fleet-elsewhere", {"gpu-fleet.io/cluster": "other"})
    overlay(kube, "theirs", {})
    run(DeleteNodePoolsOperator)
    left = sorted(item["metadata"]["name"] for item in kube.list(NODE_OVERLAY))
    assert left == ["gpu-fleet-elsewhere", "theirs"]


def test_our_own_overlay_does_not_keep_karpenter(kube: KubeClient) -> None:
    overlay(kube, "gpu-fleet-shared-a10g", {"gpu-fleet.io/cluster": "demo"})
    assert run(PlanTeardownOperator)["plan"]["pools"] == []


# --- delete -----------------------------------------------------------------------------------------------------------


def test_with_karpenter_alive_pools_and_claims_are_deleted_and_instances_left_to_it(
    kube: KubeClient, aws: AwsSession
) -> None:
    pool(kube)
    foreign_pool(kube)
    claim(kube, "c1")
    claim(kube, "orphan", None)
    claim(kube, "other", "cpu")
    karpenter(kube)
    mine = instance(aws)
    result = run(DeleteNodePoolsOperator)
    assert (result["way"], result["pools"], result["nodeClaims"]) == ("ByKarpenter", [POOL], ["c1", "orphan"])
    assert deleting(kube, NODE_POOL, POOL)
    assert deleting(kube, NODE_CLAIM, "c1")
    assert deleting(kube, NODE_CLAIM, "orphan")
    assert not deleting(kube, NODE_POOL, "cpu")
    assert not deleting(kube, NODE_CLAIM, "other")
    assert state(aws, mine) in ("pending", "running")
    assert run(DeleteNodePoolsOperator)["way"] == "ByKarpenter"


@pytest.mark.parametrize("ready", [None, False])
def test_with_karpenter_dead_nothing_is_touched_unless_the_spec_says_so(kube: KubeClient, ready: bool | None) -> None:
    pool(kube)
    if ready is not None:
        karpenter(kube, ready=ready)
    with pytest.raises(PermanentError, match="whenKarpenterIsDead: emergency") as caught:
        run(DeleteNodePoolsOperator)
    assert caught.value.reason == "KarpenterDead"
    assert not deleting(kube, NODE_POOL, POOL)


def test_in_an_emergency_instances_go_before_finalizers(kube: KubeClient, aws: AwsSession) -> None:
    pool(kube)
    foreign_pool(kube)
    kube.patch(ObjectRef(EC2_NODE_CLASS, POOL), {"metadata": {"finalizers": [FINALIZER_NODE_CLASS, "a.b/keep"]}})
    claim(kube, "c1")
    claim(kube, "other", "cpu")
    node(kube, "n1")
    node(kube, "n2", "cpu")
    mine, other = instance(aws), instance(aws, "cpu")
    result = run(DeleteNodePoolsOperator, demo_spec(**EMERGENCY))
    assert (result["way"], result["instances"]) == ("Emergency", [mine])
    assert state(aws, mine) in ("shutting-down", "terminated")
    assert state(aws, other) == "running"
    for kind, name in ((NODE_POOL, POOL), (NODE_CLAIM, "c1"), (NODE, "n1")):
        assert kube.get(ObjectRef(kind, name)) is None
    for kind, name in ((NODE_POOL, "cpu"), (NODE_CLAIM, "other"), (NODE, "n2")):
        assert not deleting(kube, kind, name)
    node_class = kube.get(ObjectRef(EC2_NODE_CLASS, POOL)) or {}
    assert node_class["metadata"]["finalizers"] == ["a.b/keep"]


@pytest.mark.parametrize(
    ("pool_name", "file"),
    [("cpu", None), ("whole-a100", "demo"), (POOL, None), (POOL, "other"), ("gone", None)],
    ids=["another team's", "manage: false", "without our tags", "another file's", "of a pool that is gone"],
)
def test_an_emergency_spares_what_is_not_ours_though_its_pool_is_going(
    kube: KubeClient, aws: AwsSession, pool_name: str, file: str | None
) -> None:
    """Karpenter is dead, and somebody deletes a NodePool of theirs: what Karpenter made for it is left alone."""
    spec = demo_spec(nodePools__1__manage=False, teardown__uninstallKarpenter=False, **EMERGENCY)
    pool(kube)
    if pool_name in ("cpu", "whole-a100"):
        manifest = build("node_pool", demo_spec(), pool=POOL)[0]
        manifest["metadata"] = {"name": pool_name, "finalizers": ["team.example/keep"]}
        kube.apply(manifest, field_manager="somebody")
        kube.delete(ObjectRef(NODE_POOL, pool_name))
    theirs = instance(aws, pool_name, file=file, claim="theirs")
    mine = instance(aws, claim="mine")
    for name, instance_id, of_pool in (("theirs", theirs, pool_name), ("mine", mine, POOL)):
        claim(kube, name, of_pool)
        node(kube, f"node-{name}", of_pool)
        kube.patch(ObjectRef(NODE, f"node-{name}"), {"spec": {"providerID": f"aws:///us-west-2a/{instance_id}"}})
    plan = run(PlanTeardownOperator, spec)
    assert [row["id"] for row in plan["plan"]["instances"]] == [mine]
    assert [row["id"] for row in plan["plan"]["spared"]] == [theirs]
    assert f"Not touched, although their NodePools are gone or being deleted: {theirs}" in plan["markdown"]
    delete_all = DeleteNodePoolsOperator(task_id="task")
    with pytest.raises(PermanentError, match=rf"{theirs} \(g5.xlarge, NodePool {pool_name}\) remain") as remain:
        delete_all.execute(context(TaskInstance(spec=spec)))
    assert remain.value.reason == "OthersRemain"
    assert mine not in remain.value.message
    assert state(aws, theirs) in ("pending", "running")
    assert state(aws, mine) in ("shutting-down", "terminated")
    for kind, name in ((NODE, "node-theirs"), (NODE_CLAIM, "theirs")):
        left = kube.get(ObjectRef(kind, name)) or {}
        assert left["metadata"]["finalizers"] == [FINALIZER_TERMINATION]
        assert kube.get(ObjectRef(kind, name.replace("theirs", "mine"))) is None
    aws.call("ec2", "terminate_instances", InstanceIds=[theirs])  # their owners do
    assert delete_all.execute(context(TaskInstance(spec=spec)))["spared"] == []


def test_a_wait_that_began_in_a_version_that_noted_no_spared_instances_goes_on(kube: KubeClient) -> None:
    before = {"way": "Emergency", "pools": [POOL], "nodeClaims": [], "nodes": [], "instances": []}
    gone = {"phase": "Ready", "reason": "InstancesGone", "message": "EC2 has no Karpenter instance left"}
    event = {"type": "verdict", "gate": "instances_gone", "verdict": gone}
    operator = DeleteNodePoolsOperator(task_id="task")
    resumed = operator.resume(context(TaskInstance(spec=demo_spec(**EMERGENCY))), event=event, plan=before)
    assert {key: resumed[key] for key in before} == before


@pytest.mark.parametrize("ours_left", [True, False], ids=["with something of ours", "with nothing of ours"])
def test_an_emergency_does_not_wait_for_claims_and_nodes_of_others_that_have_no_instance(
    kube: KubeClient, ours_left: bool
) -> None:
    """With Karpenter dead their finalizers are served by no controller: such a wait would only end by its deadline."""
    spec = demo_spec(teardown__uninstallKarpenter=False, **EMERGENCY)
    pool(kube)
    claim(kube, "theirs", "gone")
    node(kube, "node-theirs", "gone")
    if ours_left:
        claim(kube, "mine")
        node(kube, "node-mine")
    else:
        remove(kube, NODE_POOL, POOL)
    plan = run(PlanTeardownOperator, spec)
    assert plan["plan"]["way"] == ("Emergency" if ours_left else "NothingLeft")
    if ours_left:
        assert "NodeClaim theirs (NodePool gone)" in plan["markdown"]
    removed = run(DeleteNodePoolsOperator, spec)
    assert removed["others"] == ["NodeClaim theirs (NodePool gone)", "Node node-theirs (NodePool gone)"]
    args = {"cluster": spec.cluster.name, "standalone_stays": True, "removed": removed}
    gone = GateSensor(task_id="gone", gate="nodeclaims_gone", args=args)
    assert gone.execute(context(TaskInstance(spec=spec)))["reason"] == "NodeClaimsGone"
    claim(kube, "late", POOL)  # of a pool of ours: waited for
    with pytest.raises(TaskDeferred):
        gone.execute(context(TaskInstance(spec=spec)))
    assert deleting(kube, NODE_CLAIM, "theirs") is False


def test_an_emergency_takes_the_instances_of_our_pools_that_the_file_no_longer_has(
    kube: KubeClient, aws: AwsSession
) -> None:
    manifest = build("node_pool", demo_spec(), pool=POOL)[0]
    manifest["metadata"] = {"name": "old", "labels": {"gpu-fleet.io/cluster": "demo"}}
    kube.apply(manifest)
    mine = instance(aws, "old")
    assert run(DeleteNodePoolsOperator, demo_spec(**EMERGENCY))["instances"] == [mine]


# --- what was approved ------------------------------------------------------------------------------------------------


def approved(kube: KubeClient, spec: ClusterSpec) -> TaskInstance:
    """A run whose plan of this moment was approved."""
    ti = TaskInstance(spec=spec)
    ti.xcoms["return_value"] = PlanTeardownOperator(task_id="plan").execute(context(ti))
    return ti


def delete(ti: TaskInstance) -> dict[str, Any]:
    operator = DeleteNodePoolsOperator(task_id="delete_node_pools", approved_task_id="plan")
    return operator.execute(context(ti))  # type: ignore[no-any-return]


@pytest.mark.parametrize("alive", [True, False], ids=["by Karpenter", "emergency"])
def test_the_deletion_that_is_cleared_alone_refuses_what_has_come_since_the_approval(
    kube: KubeClient, aws: AwsSession, alive: bool
) -> None:
    pool(kube)
    karpenter(kube, ready=alive)
    instance(aws)
    ti = approved(kube, demo_spec(**EMERGENCY))
    new = instance(aws)
    with pytest.raises(PermanentError, match=rf"would also remove instance {new} .*nothing was removed") as refused:
        delete(ti)
    assert refused.value.reason == "PlanGrew"
    assert not deleting(kube, NODE_POOL, POOL)
    assert state(aws, new) in ("pending", "running")


@pytest.mark.parametrize("operator", [PlanTeardownOperator, DeleteNodePoolsOperator])
def test_an_emergency_that_nobody_has_approved_is_refused(kube: KubeClient, aws: AwsSession, operator: Any) -> None:
    """Karpenter has died since a teardown through it was approved."""
    pool(kube)
    karpenter(kube)
    mine = instance(aws)
    ti = approved(kube, demo_spec(**EMERGENCY))
    ready = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    kube.patch(ObjectRef(POD, "karpenter-0", "kube-system"), ready, subresource="status")
    with pytest.raises(PermanentError, match="Karpenter has died") as refused:
        operator(task_id="task", approved_task_id="plan").execute(context(ti))
    assert refused.value.reason == "WayNotApproved"
    assert not deleting(kube, NODE_POOL, POOL)
    assert state(aws, mine) in ("pending", "running")


def test_an_approved_emergency_is_carried_out_and_finished_by_the_next_try(kube: KubeClient, aws: AwsSession) -> None:
    """Also for a pool that the file no longer has, and which the first try has deleted."""
    manifest = build("node_pool", demo_spec(), pool=POOL)[0]
    manifest["metadata"] = {"name": "old", "labels": {"gpu-fleet.io/cluster": "demo"}}
    kube.apply(manifest)
    mine = instance(aws, "old")
    ti = approved(kube, demo_spec(**EMERGENCY))
    kube.delete(ObjectRef(NODE_POOL, "old"))
    node(kube, "late", "old")
    assert delete(ti)["instances"] == [mine]
    assert kube.get(ObjectRef(NODE, "late")) is None


def test_without_an_approved_plan_the_deletion_removes_nothing(kube: KubeClient) -> None:
    pool(kube)
    karpenter(kube)
    with pytest.raises(PermanentError) as refused:
        delete(TaskInstance(spec=demo_spec()))
    assert refused.value.reason == "PlanGrew"
    assert not deleting(kube, NODE_POOL, POOL)


def test_an_emergency_that_was_killed_is_finished_by_the_next_try(kube: KubeClient, aws: AwsSession) -> None:
    spec = demo_spec(**EMERGENCY)
    pool(kube)
    claim(kube, "c1")
    node(kube, "n1")
    instance(aws)
    kube.delete(ObjectRef(NODE_POOL, POOL))
    kube.delete(ObjectRef(NODE_CLAIM, "c1"))
    result = run(DeleteNodePoolsOperator, spec)
    assert result["nodeClaims"] == ["c1"]
    assert kube.list(NODE_CLAIM) == []
    node(kube, "n9")
    assert run(DeleteNodePoolsOperator, spec)["way"] == "NothingLeft"
    assert kube.list(NODE) == []


def terminates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """EC2 takes its time: it accepts the request, and the instances run still."""
    call = AwsSession.call
    monkeypatch.setattr(
        AwsSession, "call", lambda self, service, *a, **b: {} if service == "ec2" else call(self, service, *a, **b)
    )


def test_finalizers_stay_while_an_instance_lives(
    kube: KubeClient, aws: AwsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool(kube)
    claim(kube, "c1")
    instance(aws)
    terminates_nothing(monkeypatch)
    with pytest.raises(TaskDeferred) as deferred:
        run(DeleteNodePoolsOperator, demo_spec(**EMERGENCY))
    assert deferred.value.method_name == "resume"
    found = kube.get(ObjectRef(NODE_CLAIM, "c1")) or {}
    assert found["metadata"]["finalizers"] == [FINALIZER_TERMINATION]
    operator = DeleteNodePoolsOperator(task_id="task")
    refused = {"phase": "Failed", "reason": "Forbidden", "message": "no", "permanent": True}
    event = {"type": "verdict", "gate": "instances_gone", "verdict": refused}
    with pytest.raises(GateRefused):
        operator.resume(context(TaskInstance(spec=demo_spec())), event=event, **(deferred.value.kwargs or {}))
    assert kube.get(ObjectRef(NODE_CLAIM, "c1")) is not None


def test_finalizers_stay_although_a_triggerer_has_looked_into_another_account(
    kube: KubeClient, aws: AwsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool(kube)
    claim(kube, "c1")
    instance(aws)
    terminates_nothing(monkeypatch)
    with pytest.raises(TaskDeferred) as first:
        run(DeleteNodePoolsOperator, demo_spec(**EMERGENCY))
    operator = DeleteNodePoolsOperator(task_id="task")
    gone = {"phase": "Ready", "reason": "InstancesGone", "message": "EC2 has no Karpenter instance left"}
    event = {"type": "verdict", "gate": "instances_gone", "verdict": gone}
    with pytest.raises(TaskDeferred) as again:
        operator.resume(context(TaskInstance(spec=demo_spec(**EMERGENCY))), event=event, **(first.value.kwargs or {}))
    assert again.value.method_name == "resume"
    found = kube.get(ObjectRef(NODE_CLAIM, "c1")) or {}
    assert found["metadata"]["finalizers"] == [FINALIZER_TERMINATION]


def test_what_waits_for_the_instances_goes_on_only_when_the_worker_sees_it_too(
    kube: KubeClient, aws: AwsSession
) -> None:
    """Karpenter goes next. The triggerer's session may be of the account that the connection named before."""
    pool(kube)
    ref = ObjectRef(NODE_POOL, POOL)
    kube.patch(ref, {"metadata": {"finalizers": ["karpenter.sh/hold"]}})
    kube.delete(ref)
    left = instance(aws)
    sensor = GateSensor(task_id="gone", gate="instances_gone", args={"cluster": demo_spec().cluster.name})
    gone = {"phase": "Ready", "reason": "InstancesGone", "message": "EC2 has no Karpenter instance left"}
    event = {"type": "verdict", "gate": "instances_gone", "verdict": gone}
    task = context(TaskInstance(spec=demo_spec()))
    with pytest.raises(TaskDeferred):
        sensor.execute_complete(task, event)
    assert task["ti"].xcoms["waiting_for"]["reason"] == "InstancesRemain"
    aws.call("ec2", "terminate_instances", InstanceIds=[left])
    assert sensor.execute_complete(task, event)["reason"] == "InstancesGone"
    kube.patch(ref, {"metadata": {"finalizers": None}})


def test_where_nothing_is_left_a_dead_karpenter_does_not_matter(kube: KubeClient) -> None:
    assert run(DeleteNodePoolsOperator)["way"] == "NothingLeft"


# --- node classes -----------------------------------------------------------------------------------------------------


def node_class(kube: KubeClient, name: str, cluster: str | None = "demo") -> None:
    manifest = build("node_class", demo_spec(), pool=POOL)[0]
    labels = {"gpu-fleet.io/cluster": cluster} if cluster else {}
    kube.apply({**manifest, "metadata": {"name": name, "labels": labels}})


@pytest.mark.parametrize("emergency", [False, True])
def test_node_classes_go_by_label_except_those_of_kept_pools(kube: KubeClient, emergency: bool) -> None:
    """Also one whose pool the file no longer has: nothing would ever remove it, and Karpenter's end waits for it."""
    spec = demo_spec(nodePools__1__manage=False, teardown__uninstallKarpenter=False, **EMERGENCY)
    for name in (POOL, "removed", "whole-a100"):
        node_class(kube, name)
    node_class(kube, "of-another", "other")
    node_class(kube, "of-nobody", None)
    if emergency:
        assert run(DeleteNodePoolsOperator, spec)["way"] == "NothingLeft"
    else:
        report = run(DeleteNodeClassesOperator, spec)
        assert report["deleted"] == ["EC2NodeClass removed", f"EC2NodeClass {POOL}"]
    assert {item["metadata"]["name"] for item in kube.list(EC2_NODE_CLASS)} == {"whole-a100", "of-another", "of-nobody"}


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_a_clean_cluster_has_no_leaks(kube: KubeClient) -> None:
    report = run(LeakCheckOperator)
    assert (report["leaks"], report["unchecked"]) == ([], [])
    assert {"instances.owned", "volumes", "launch_templates", "instance_profiles", "node_claims"} <= set(
        report["checked"]
    )


def test_leaks_are_named_with_price_and_kept_in_the_report(kube: KubeClient, aws: AwsSession) -> None:
    mine = instance(aws)
    claim(kube, "c1")
    pool(kube)
    operator = LeakCheckOperator(task_id="task")
    ti = TaskInstance(spec=demo_spec())
    with pytest.raises(LeakFound, match=rf"EC2 instance {mine} .*1\.01 USD/h") as caught:
        operator.execute(context(ti))
    for part in ("NodeClaim c1", f"NodePool {POOL}", f"EC2NodeClass {POOL}"):
        assert part in caught.value.message
    report = ti.xcoms["report"]
    assert {leak["kind"] for leak in report["leaks"]} == {"EC2 instance", "NodeClaim", "NodePool", "EC2NodeClass"}
    json.dumps(report)


GONE = NotFound("there is no EKS cluster 'demo-gpu'", reason="ClusterNotFound")
DOWN = ApiUnavailable("the API server does not answer")


@pytest.mark.parametrize(
    ("unread", "raised"),
    [(GONE, LeakFound), (DOWN, ApiUnavailable), (Forbidden("no", reason="AuthFailure"), LeakFound)],
    ids=["deleted", "down: tried again", "no permission"],
)
def test_instances_are_named_also_when_the_cluster_cannot_be_read(
    kube: KubeClient, aws: AwsSession, monkeypatch: pytest.MonkeyPatch, unread: GpuFleetError, raised: type[Exception]
) -> None:
    mine = instance(aws)
    ti = TaskInstance(spec=demo_spec())
    with monkeypatch.context() as patch:
        patch.setattr(KubeClient, "list", _refused(unread))
        with pytest.raises(raised) as caught:
            LeakCheckOperator(task_id="task").execute(context(ti))
    assert f"EC2 instance {mine}" in str(caught.value)
    assert unread.message in str(caught.value)
    report = ti.xcoms["report"]
    assert [leak["name"] for leak in report["leaks"]] == [mine]
    assert report["unchecked"] == [{"subject": "cluster", "why": unread.message}]
    assert "node_claims" not in report["checked"]


@pytest.mark.parametrize("unread", [GONE, DOWN], ids=["deleted", "down"])
def test_a_cluster_that_cannot_be_read_is_never_clean(
    kube: KubeClient, monkeypatch: pytest.MonkeyPatch, unread: GpuFleetError
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(KubeClient, "list", _refused(unread))
        with pytest.raises(type(unread)) as caught:
            run(LeakCheckOperator)
    assert caught.value is unread


def _refused(error: GpuFleetError) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    return refuse


def test_launch_templates_and_profiles_of_a_vanished_class_are_leaks(kube: KubeClient, aws: AwsSession) -> None:
    tags = [
        {"Key": "eks:eks-cluster-name", "Value": "demo-gpu"},
        {"Key": "topology.kubernetes.io/region", "Value": "us-west-2"},
        {"Key": "karpenter.k8s.aws/ec2nodeclass", "Value": POOL},
        {"Key": "kubernetes.io/cluster/demo-gpu", "Value": "owned"},
    ]
    aws.call(
        "ec2",
        "create_launch_template",
        LaunchTemplateName="karpenter.k8s.aws/1",
        LaunchTemplateData={"InstanceType": "g5.xlarge"},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
    )
    aws.call("iam", "create_instance_profile", InstanceProfileName="demo-gpu_1", Tags=tags)
    aws.call("iam", "create_instance_profile", InstanceProfileName="demo-gpu_else")
    try:
        with pytest.raises(LeakFound) as caught:
            run(LeakCheckOperator)
        assert "launch template karpenter.k8s.aws/1" in caught.value.message
        assert "instance profile demo-gpu_1 " in caught.value.message
        assert "demo-gpu_else" not in caught.value.message
    finally:
        aws.call("ec2", "delete_launch_template", LaunchTemplateName="karpenter.k8s.aws/1")
        for name in ("demo-gpu_1", "demo-gpu_else"):
            aws.call("iam", "delete_instance_profile", InstanceProfileName=name)
