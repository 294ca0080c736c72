"""``preflight.check_neighbours`` against the sandbox's AWS and API server: refused before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import NeighbourConflict
from gpu_fleet.core.kubernetes.kinds import CRD, DAEMON_SET, NODE, ObjectRef
from gpu_fleet.core.spec import parse_cluster
from gpu_fleet.hooks.files.clusters import load_cluster
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.helm.releases.plugin_nodes import label_nodes
from gpu_fleet.operators.preflight.neighbours import CheckNeighboursOperator
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.neighbour_objects import static
from tests.unit.sandboxed import SandboxCloud, define, only_connections, sandbox_cloud

ACCESS = ClusterAccess("eks", "aws_demo", "us-west-2", "demo-gpu")
PLUGIN = "nvidia-device-plugin-daemonset"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with sandbox_cloud(tmp_path_factory.mktemp("sandbox")) as cloud:
        yield cloud


@pytest.fixture
def cloud(shared: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCloud]:
    only_connections(monkeypatch, aws_demo=shared.connection)
    yield shared
    shared.settings.faults.clear()
    kube = KubernetesHook(ACCESS).client()
    kube.delete(ObjectRef(DAEMON_SET, PLUGIN, "kube-system"))
    for kind in ("clusterpolicies", "gpuclusters"):
        kube.delete(ObjectRef(CRD, f"{kind}.nvidia.com"))
    for node in kube.list(NODE):
        kube.delete(ObjectRef(NODE, node["metadata"]["name"]))
    kubernetes_access.forget(ACCESS)


@pytest.fixture
def kube(cloud: SandboxCloud) -> KubeClient:
    return KubernetesHook(ACCESS).client()


def check(**changes: Any) -> dict[str, Any]:
    value = {**load_cluster("demo").to_json(), **changes}
    found: dict[str, Any] = CheckNeighboursOperator(task_id="check_neighbours").execute(
        context(TaskInstance(spec=parse_cluster(value)))
    )
    return found


def refused(**changes: Any) -> NeighbourConflict:
    with pytest.raises(NeighbourConflict) as caught:
        check(**changes)
    return caught.value


def install_static(kube: KubeClient, **pod: Any) -> None:
    item = static(**pod)
    del item["metadata"]["uid"]
    kube.apply(item)


def operator_s(kube: KubeClient, kind: str, plural: str, version: str = "v1", **spec: Any) -> None:
    """A custom resource of NVIDIA's GPU Operator, and its definition."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    define(
        kube,
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.nvidia.com"},
            "spec": {
                "group": "nvidia.com",
                "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
                "scope": "Cluster",
                "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
            },
        },
    )
    kube.apply({"apiVersion": f"nvidia.com/{version}", "kind": kind, "metadata": {"name": "policy"}, "spec": spec})


def test_alone_on_the_cluster(kube: KubeClient) -> None:
    assert check() == {"neighbours": []}


def test_nvidias_static_plugin_is_refused_and_narrowed_as_told_it_is_not(kube: KubeClient) -> None:
    install_static(kube)
    error = refused()
    assert error.reason == "ForeignDevicePlugin"
    assert error.message.startswith("nothing has been changed: DaemonSet kube-system/nvidia-device-plugin-daemonset")
    kube.delete(ObjectRef(DAEMON_SET, PLUGIN, "kube-system"))
    install_static(kube, nodeSelector={"eks.amazonaws.com/nodegroup": "team-b"})
    (found,) = check()["neighbours"]
    assert (found["object"], found["pools"], found["conflicts"]) == (f"DaemonSet kube-system/{PLUGIN}", [], False)


@pytest.mark.parametrize(
    ("kind", "plural", "version"),
    [("ClusterPolicy", "clusterpolicies", "v1"), ("GPUCluster", "gpuclusters", "v1alpha1")],
)
def test_the_gpu_operator_is_found_by_whatever_version_the_cluster_has(
    kube: KubeClient, kind: str, plural: str, version: str
) -> None:
    operator_s(kube, kind, plural, version, driver={"enabled": False})
    assert f"{kind} policy" in refused().message


@pytest.mark.parametrize(
    ("kind", "named"), [("DaemonSet", "all DaemonSets"), ("ClusterPolicy", "the GPU Operator's resources")]
)
def test_what_is_forbidden_is_unknown_and_what_is_absent_is_not_there(
    cloud: SandboxCloud, kube: KubeClient, kind: str, named: str
) -> None:
    operator_s(kube, "ClusterPolicy", "clusterpolicies", devicePlugin={"enabled": False})
    assert [item["conflicts"] for item in check()["neighbours"]] == [False]
    rule = {"verb": "list", "kind": kind, "status": 403, "reason": "Forbidden"}
    cloud.settings.faults.set("request-faults", {"rules": [rule]})
    error = refused()
    assert error.reason == "NeighboursUnknown"
    assert named in error.message


def test_eks_auto_mode_is_told(cloud: SandboxCloud, kube: KubeClient) -> None:
    cloud.settings.faults.set("eks-auto-mode")
    assert [item["object"] for item in check()["neighbours"]] == ["EKS Auto Mode"]


def test_with_somebody_elses_plugin_there_has_to_be_one(kube: KubeClient) -> None:
    plugin = {**load_cluster("demo").to_json()["devicePlugin"], "manage": False}
    assert refused(devicePlugin=plugin).reason == "NoDevicePlugin"
    install_static(kube)
    # It serves the whole GPUs; the shared pool needs a config that it has not.
    assert refused(devicePlugin=plugin).reason == "SharingNotConfigured"


def test_nodes_of_ours_that_are_older_than_the_label_get_it_and_no_others(kube: KubeClient) -> None:
    spec = load_cluster("demo")
    nodes = {
        "old": {"karpenter.sh/nodepool": "shared-a10g"},
        "new": {
            "karpenter.sh/nodepool": "shared-a10g",
            "gpu-fleet.io/device-plugin": "true",
            "gpu-fleet.io/pool": "shared-a10g",
        },
        "other-pool": {"karpenter.sh/nodepool": "team-b"},
        "other-group": {"eks.amazonaws.com/nodegroup": "team-b", "nvidia.com/gpu.present": "true"},
    }
    for name, labels in nodes.items():
        kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    before = {node["metadata"]["name"]: node["metadata"]["resourceVersion"] for node in kube.list(NODE)}
    assert label_nodes(kube, spec) == ["old"]
    assert label_nodes(kube, spec) == []
    after = {node["metadata"]["name"]: node["metadata"]["resourceVersion"] for node in kube.list(NODE)}
    assert {name for name in before if before[name] != after[name]} == {"old"}
    labelled = kube.list(NODE, label_selector="gpu-fleet.io/device-plugin=true")
    assert sorted(node["metadata"]["name"] for node in labelled) == ["new", "old"]


def test_nodes_whose_ami_brings_a_plugin_get_the_label_that_keeps_ours_off(kube: KubeClient) -> None:
    """Also those that were launched while the plugin belonged to others, and so carry the other value."""
    spec = load_cluster("demo").to_json()
    spec["nodePools"][0]["amiAlias"] = "bottlerocket@1.60.0"
    nodes = {
        "bottlerocket": {"karpenter.sh/nodepool": "shared-a10g", "gpu-fleet.io/device-plugin": "true"},
        "of-a-pool-that-is-gone": {"karpenter.sh/nodepool": "shared-a10g", "gpu-fleet.io/device-plugin": "built-in"},
        "al2023": {"karpenter.sh/nodepool": "whole-a100"},
    }
    for name, labels in nodes.items():
        kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    label_nodes(kube, parse_cluster(spec))
    found = {
        node["metadata"]["name"]: node["metadata"]["labels"]["gpu-fleet.io/device-plugin"]
        for node in kube.list(NODE)
        if node["metadata"]["name"] in nodes
    }
    assert found == {"bottlerocket": "built-in", "of-a-pool-that-is-gone": "built-in", "al2023": "true"}
