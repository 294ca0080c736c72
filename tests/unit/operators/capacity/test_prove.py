"""Placeholders, and the label that keeps them away from the nodes that stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import DeadlinePassed
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_CORDONED_BY,
    LABEL_INITIALIZED,
    LABEL_NODE_POOL,
    LABEL_STANDING,
    SYSTEM_NAMESPACE,
)
from gpu_fleet.core.nodes.replacement import Replacement
from gpu_fleet.core.verdict import ready
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.capacity import prove
from gpu_fleet.operators.capacity import request as request_capacity
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.holding import ReleasePlaceholdersOperator
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import sandbox_cloud

POOL, OTHER = "shared-a10g", "whole-a100"
DOES_NOT_STAND = [{"matchExpressions": [{"key": LABEL_STANDING, "operator": "DoesNotExist"}]}]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeClient]:
    """A cluster without controllers and its AWS account, which knows how many GPUs an instance type has."""
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(tmp_path_factory.mktemp("cloud")) as found:
        environment.setenv("AIRFLOW_CONN_AWS_DEMO", found.connection)
        kube = KubernetesHook(ClusterAccess.from_spec(demo_spec())).client()
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        kube.apply(account | {"metadata": {"name": "default", "namespace": SYSTEM_NAMESPACE}})
        yield kube


@pytest.fixture
def kube(cloud: KubeClient) -> Iterator[KubeClient]:
    yield cloud
    for pod in cloud.list(POD, SYSTEM_NAMESPACE):
        cloud.delete(ObjectRef(POD, pod["metadata"]["name"], SYSTEM_NAMESPACE), grace_seconds=0)
    for item in cloud.list(NODE):
        cloud.delete(ObjectRef(NODE, item["metadata"]["name"]))


def joined(kube: KubeClient, name: str, pool: str = POOL, **labels: str) -> None:
    found = {LABEL_NODE_POOL: pool, LABEL_INITIALIZED: "true", **labels}
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": found}})


def request(wanted: int) -> Any:
    spec = demo_spec(nodePools__0__wantedNodes=wanted)
    return RequestCapacityOperator(task_id="request", node_pool=POOL).execute(context(TaskInstance(spec=spec)))


def standing(kube: KubeClient) -> list[str]:
    return sorted(node["metadata"]["name"] for node in kube.list(NODE, label_selector=LABEL_STANDING))


def placeholders(kube: KubeClient) -> list[dict[str, Any]]:
    return sorted(kube.list(POD, SYSTEM_NAMESPACE), key=lambda pod: str(pod["metadata"]["name"]))


def test_the_nodes_that_stand_are_marked_before_the_placeholder_is_there(kube: KubeClient) -> None:
    joined(kube, "n1")
    joined(kube, "other", OTHER)
    assert request(2)["created"] == [f"placeholder-{POOL}-0"]
    assert standing(kube) == ["n1"]
    (pod,) = placeholders(kube)
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert affinity["nodeSelectorTerms"] == DOES_NOT_STAND
    node = kube.get(ObjectRef(NODE, "n1")) or {}
    assert int(node["metadata"]["resourceVersion"]) < int(pod["metadata"]["resourceVersion"])


def test_a_node_whose_claim_is_being_deleted_stays_cordoned_and_does_not_count(
    kube: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Karpenter is about to delete it: a pod that came now would be evicted at once."""
    joined(kube, "n1")
    cordon = {"metadata": {"annotations": {ANNOTATION_CORDONED_BY: "gpu_lifecycle.demo/1"}}}
    kube.patch(ObjectRef(NODE, "n1"), {**cordon, "spec": {"unschedulable": True}})
    metadata = {"name": "c1", "labels": {LABEL_NODE_POOL: POOL}, "deletionTimestamp": "2025-01-01T00:00:00Z"}
    going, listed = {"metadata": metadata, "status": {"nodeName": "n1"}}, KubeClient.list

    def with_claims(self: KubeClient, kind: Any, *args: Any, **kwargs: Any) -> Any:
        return [going] if kind is NODE_CLAIM else listed(self, kind, *args, **kwargs)

    monkeypatch.setattr(KubeClient, "list", with_claims)
    found = request(1)
    assert (found["standing"], found["created"]) == (0, [f"placeholder-{POOL}-0"])
    assert (kube.get(ObjectRef(NODE, "n1")) or {})["spec"]["unschedulable"] is True


@pytest.mark.parametrize(
    ("by", "created", "cordoned"),
    [("gpu_drain.demo/manual__1", 1, True), ("gpu_drain.demo/dead", 0, False)],
    ids=["this run's", "a dead run's"],
)
def test_a_node_that_this_run_is_about_to_drain_is_replaced_and_stays_cordoned(
    kube: KubeClient, by: str, created: int, cordoned: bool
) -> None:
    """``replaceFirst`` of ``gpu_drain``: the new node is requested after the cordon and before the drain."""
    joined(kube, "n1")
    joined(kube, "n2")
    cordon = {"metadata": {"annotations": {ANNOTATION_CORDONED_BY: by}}}
    kube.patch(ObjectRef(NODE, "n1"), {**cordon, "spec": {"unschedulable": True}})
    ti = TaskInstance(dag_id="gpu_drain.demo", spec=demo_spec(nodePools__0__wantedNodes=0))
    # n2 stays, and one comes for n1.
    ti.xcoms["return_value"] = {"replace": {POOL: {"nodes": ["n1"], "surge": 2}}}
    operator = RequestCapacityOperator(task_id="request", node_pool=POOL, surge_task_id="plan_again")
    assert len(operator.execute(context(ti))["created"]) == created
    assert bool((kube.get(ObjectRef(NODE, "n1")) or {})["spec"].get("unschedulable")) is cordoned
    assert ti.xcoms["replacement"]["surge"] == 2


@pytest.mark.parametrize("all_come", [False, True])
def test_a_drain_does_not_begin_without_the_nodes_that_are_to_come_first(
    kube: KubeClient, monkeypatch: pytest.MonkeyPatch, all_come: bool
) -> None:
    """Unlike a drifted node, which stays until the next run: its pool has all wanted nodes, and that is no failure."""

    def wait(*_: Any, **__: Any) -> Any:
        raise DeadlinePassed("no capacity in us-west-2")

    monkeypatch.setattr(prove, "await_gate", wait)
    monkeypatch.setattr(prove, "planned_replacement", lambda *_: Replacement(chosen=("n1",), surge=1))
    enough = ready("CapacityReady", "all there", nodes=["n2"])
    monkeypatch.setattr("gpu_fleet.operators.capacity.replacement.look", lambda *_: enough)
    operator = AwaitCapacityOperator(task_id="await", node_pool=POOL, all_come=all_come)
    given = context(TaskInstance(spec=demo_spec(nodePools__0__wantedNodes=1)))
    if all_come:
        with pytest.raises(DeadlinePassed):
            operator.execute(given)
    else:
        assert operator.execute(given) == {"nodes": ["n2"]}


def test_with_all_nodes_there_nothing_is_marked(kube: KubeClient) -> None:
    joined(kube, "n1")
    assert request(1)["created"] == []
    assert standing(kube) == []


def test_killed_between_the_marks_and_the_placeholders(kube: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    joined(kube, "n1")

    def killed(*_: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(request_capacity, "create_pod", killed)
        with pytest.raises(KeyboardInterrupt):
            request(2)
    assert (standing(kube), placeholders(kube)) == (["n1"], [])
    # A user's pod has brought a node meanwhile; it stands as well, and one more is asked for, not two.
    joined(kube, "n2")
    assert request(3)["created"] == [f"placeholder-{POOL}-0"]
    assert standing(kube) == ["n1", "n2"]


def test_asked_again_while_the_new_node_joins_the_node_stays_open_to_its_placeholder(kube: KubeClient) -> None:
    joined(kube, "n1")
    request(2)
    joined(kube, "n2")
    assert request(2)["created"] == []
    assert standing(kube) == ["n1"]


@pytest.mark.parametrize("release", [ReleasePlaceholdersOperator, CleanUpValidationOperator])
def test_the_marks_go_with_the_placeholders(kube: KubeClient, release: Any) -> None:
    joined(kube, "n1")
    joined(kube, "of-a-dead-run", **{LABEL_STANDING: "true"})
    joined(kube, "other", OTHER, **{LABEL_STANDING: "true"})
    request(3)
    release(task_id="release", node_pool=POOL).execute(context(TaskInstance(spec=demo_spec())))
    assert placeholders(kube) == []
    assert standing(kube) == ["other"]
