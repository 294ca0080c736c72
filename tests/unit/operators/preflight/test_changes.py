"""What a run says before it applies anything, and in which order it applies: against the sandbox's API server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import Forbidden
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, EC2_NODE_CLASS, NODE, NODE_CLAIM, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import SYSTEM_NAMESPACE
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.manifests.pool_facts import UNKNOWN
from gpu_fleet.core.nodes.records import CONFIG_MAP_NAME, records_of
from gpu_fleet.hooks.cluster.drifted import look_at_nodes, remember_class
from gpu_fleet.operators.drifted import DRIFTED, note_drifted
from gpu_fleet.operators.objects.node_pools import ApplyNodeClassOperator
from gpu_fleet.operators.preflight.changes import MARKDOWN, PLAN, PlanChangesOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core.node_objects import job, made_of
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL = "shared-a10g"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube)
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml"}})
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        cluster.kube.apply(account | {"metadata": {"name": "default", "namespace": "ml"}})
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    yield shared
    shared.faults.clear()
    for pod in shared.kube.list(POD):
        shared.kube.delete(ObjectRef(POD, pod["metadata"]["name"], "ml"), grace_seconds=0)
    for kind in (NODE, NODE_CLAIM, NODE_POOL, EC2_NODE_CLASS):
        for item in shared.kube.list(kind):
            shared.kube.delete(ObjectRef(kind, item["metadata"]["name"]))
    shared.kube.delete(ObjectRef(CONFIG_MAP, CONFIG_MAP_NAME, SYSTEM_NAMESPACE))


def spec_of(cluster: SandboxCluster, **pool: Any) -> Any:
    """The demo's spec with changes of its first pool; ``nodeClass`` changes the class."""
    spec = spec_at(str(cluster.access.path))
    value = spec.to_json()
    value["nodeClass"] |= pool.pop("nodeClass", {})
    value["nodePools"][0] |= pool
    return type(spec).model_validate(value)


def applied(cluster: SandboxCluster, spec: Any, pool: str = "1", node_class: str = "1") -> None:
    """The first pool's objects as Karpenter leaves them, with these hashes."""
    for name in ("node_class", "node_pool"):
        for manifest in build(name, spec, pool=POOL):
            cluster.kube.apply(manifest)
    kinds = {
        NODE_POOL: ("karpenter.sh/nodepool", pool, "v3"),
        EC2_NODE_CLASS: ("karpenter.k8s.aws/ec2nodeclass", node_class, "v5"),
    }
    for kind, (prefix, digest, version) in kinds.items():
        marks = {f"{prefix}-hash": digest, f"{prefix}-hash-version": version}
        cluster.kube.patch(ObjectRef(kind, POOL), {"metadata": {"annotations": marks}}, field_manager="karpenter")
    status = {"amis": [{"id": "ami-0714", "name": "eks", "requirements": []}]}
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "observedGeneration": 0}
    generation = cluster.kube.get(ObjectRef(EC2_NODE_CLASS, POOL))["metadata"]["generation"]
    status["conditions"] = [ready | {"observedGeneration": generation, "lastTransitionTime": "2026-10-01T00:00:00Z"}]
    cluster.kube.patch(ObjectRef(EC2_NODE_CLASS, POOL), {"status": status}, subresource="status")


def node(cluster: SandboxCluster, name: str, kubelet: str = "v1.35.3-eks-1") -> None:
    """A node as Karpenter makes it of the live objects."""
    kube = cluster.kube
    owners = (kube.get(ObjectRef(NODE_POOL, POOL)), kube.get(ObjectRef(EC2_NODE_CLASS, POOL)))
    claim = made_of(owners, name, image="ami-0714")
    for key in ("uid", "creationTimestamp"):
        del claim["metadata"][key]
    status = claim.pop("status")
    for each in status["conditions"]:
        each |= {"reason": each["type"], "message": "", "lastTransitionTime": "2026-10-01T00:00:00Z"}
    kube.create(claim)
    kube.patch(ObjectRef(NODE_CLAIM, claim["metadata"]["name"]), {"status": status}, subresource="status")
    labels = claim["metadata"]["labels"]
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{name}", "labels": labels}})
    info = {"nodeInfo": {"kubeletVersion": kubelet}}
    kube.patch(ObjectRef(NODE, f"node-{name}"), {"status": info}, subresource="status")


def plan(spec: Any) -> TaskInstance:
    ti = TaskInstance(spec=spec)
    ti.xcoms["return_value"] = PlanChangesOperator(task_id="plan_changes").execute(context(ti))
    return ti


def test_on_a_cluster_without_nodes_nothing_drifts(cluster: SandboxCluster) -> None:
    assert plan(spec_of(cluster)).xcoms["return_value"] == {"changes": 0, "drifting": 0, "drifted": 0}


def test_an_unchanged_spec_has_nothing_to_announce(cluster: SandboxCluster) -> None:
    applied(cluster, spec_of(cluster))
    node(cluster, "one")
    ti = plan(spec_of(cluster))
    assert ti.xcoms["return_value"] == {"changes": 0, "drifting": 0, "drifted": 0}
    assert ti.xcoms[PLAN] == {"changes": [], "unknown": [], "headroom": []}


def test_a_change_is_announced_with_the_pods_that_hold_gpus_and_changes_nothing(cluster: SandboxCluster) -> None:
    applied(cluster, spec_of(cluster))
    for name in ("one", "two"):
        node(cluster, name)
    cluster.kube.create(job("train", "node-two"))
    before = cluster.kube.get(ObjectRef(NODE_POOL, POOL))
    ti = plan(spec_of(cluster, labels={"team": "ml"}, nodeClass={"amiAlias": "al2023@v20260601"}))
    assert ti.xcoms["return_value"] == {"changes": 1, "drifting": 2, "drifted": 0}
    (change,) = ti.xcoms[PLAN]["changes"]
    assert {each["field"] for each in change["changes"]} == {"labels.team", "amiAlias"}
    assert [each["pods"] for each in change["drifting"]] == [[], ["ml/train"]]
    assert "2 nodes will drift, 1 of them holds pods with GPUs (ml/train)" in ti.xcoms[MARKDOWN]
    assert "Karpenter replaces none of them by itself" in ti.xcoms[MARKDOWN]
    assert cluster.kube.get(ObjectRef(NODE_POOL, POOL)) == before


def test_a_period_in_the_new_spec_does_not_reach_nodes_that_were_made_without(cluster: SandboxCluster) -> None:
    applied(cluster, spec_of(cluster))
    node(cluster, "one")
    cluster.kube.create(job("train", "node-one", stay="true"))
    budgets = {"budgets": [{"nodes": "1", "reasons": ["Drifted"]}]}
    ti = plan(spec_of(cluster, terminationGracePeriod="10m", disruption=budgets))
    (change,) = ti.xcoms[PLAN]["changes"]
    assert "node-one stay until their pods with karpenter.sh/do-not-disrupt end" in change["consequence"]
    assert change["endsPods"] == []


def test_nodes_older_than_the_control_plane_are_announced(cluster: SandboxCluster) -> None:
    applied(cluster, spec_of(cluster))
    node(cluster, "one", kubelet="v1.34.6-eks-1")
    (change,) = plan(spec_of(cluster)).xcoms[PLAN]["changes"]
    assert change["upgraded"] == "1.34 -> 1.35"
    assert [each["node"] for each in change["drifting"]] == ["node-one"]


def test_what_may_not_be_compared_is_said_and_fails_nothing(cluster: SandboxCluster) -> None:
    applied(cluster, spec_of(cluster))
    node(cluster, "one")
    cluster.fail_requests(verb="patch", resource="nodepools", status=403)
    ti = plan(spec_of(cluster, labels={"team": "ml"}))
    (words,) = ti.xcoms[PLAN]["unknown"]
    assert words.startswith(f"cannot determine what this run changes in pool {POOL}: NodePool {POOL}:")


def test_the_budgets_are_in_force_before_a_changed_class_makes_nodes_drift(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older release, or a person, let Karpenter replace drifted nodes: the class alone would set it off."""
    applied(cluster, spec_of(cluster, disruption={"budgets": [{"nodes": "5", "reasons": ["Drifted"]}]}))
    cluster.fail_requests(verb="patch", resource="ec2nodeclasses", status=403)
    spec = spec_of(cluster, nodeClass={"amiAlias": "al2023@v20260601"})
    operator = ApplyNodeClassOperator(task_id="apply_node_class", node_pool=POOL)
    monkeypatch.setattr("gpu_fleet.hooks.cluster.pool_facts.pool_facts", lambda *_: UNKNOWN)  # no EC2 here
    with pytest.raises(Forbidden):
        operator.execute(context(TaskInstance(spec=spec)))
    budgets = cluster.kube.get(ObjectRef(NODE_POOL, POOL))["spec"]["disruption"]["budgets"]
    assert {"nodes": "0", "reasons": ["Drifted"]} in budgets


def test_a_new_pool_s_class_comes_alone(cluster: SandboxCluster) -> None:
    operator = ApplyNodeClassOperator(task_id="apply_node_class", node_pool=POOL)
    operator.execute(context(TaskInstance(spec=spec_of(cluster))))
    assert cluster.kube.get(ObjectRef(NODE_POOL, POOL)) is None


def test_what_a_class_was_is_remembered_and_named_when_it_has_changed(cluster: SandboxCluster) -> None:
    applied(cluster, spec_of(cluster))
    node(cluster, "one")
    assert remember_class(cluster.kube, "demo", POOL)
    assert not remember_class(cluster.kube, "demo", POOL)
    applied(cluster, spec_of(cluster, nodeClass={"volumeSize": 200}), node_class="2")
    assert remember_class(cluster.kube, "demo", POOL)
    (drifted,) = look_at_nodes(cluster.kube, [POOL]).drifted()
    assert "volumeSize changed (100Gi -> 200Gi)" in str(drifted)


def test_pools_remember_side_by_side(cluster: SandboxCluster) -> None:
    applied(cluster, spec_of(cluster))
    remember_class(cluster.kube, "demo", POOL)
    cluster.kube.patch(ObjectRef(CONFIG_MAP, CONFIG_MAP_NAME, SYSTEM_NAMESPACE), {"data": {"other": "{}"}})
    applied(cluster, spec_of(cluster, nodeClass={"volumeSize": 200}), node_class="2")
    remember_class(cluster.kube, "demo", POOL)
    kept = cluster.kube.get(ObjectRef(CONFIG_MAP, CONFIG_MAP_NAME, SYSTEM_NAMESPACE))
    assert set(records_of(kept)) == {POOL, "other"}


def test_validation_notes_the_drifted_nodes_of_its_pool(cluster: SandboxCluster) -> None:
    applied(cluster, spec_of(cluster))
    node(cluster, "one")
    applied(cluster, spec_of(cluster, labels={"team": "ml"}), pool="2")
    spec = spec_of(cluster, labels={"team": "ml"})
    ti, operator = TaskInstance(spec=spec), PlanChangesOperator(task_id="any")
    operator.prepare(context(ti))
    note_drifted(operator, context(ti), POOL)
    (found,) = ti.xcoms[DRIFTED]
    assert found["node"] == "node-one"
    assert found["changes"] == [{"field": "labels.team", "was": "", "now": "ml"}]
