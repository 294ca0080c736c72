"""Others on the cluster: their GPU nodes, and a second device plugin on a node.

Sources: awslabs/amazon-eks-ami v20260714 ``nodeadm/internal/kubelet/config.go`` (generateKubeletConfig) and
``labels.go``; NVIDIA/k8s-device-plugin v0.20.0 ``internal/plugin/server.go`` (Serve, Stop) and
``cmd/nvidia-device-plugin/main.go`` (start); kubernetes ``pkg/kubelet/cm/devicemanager/plugin/v1beta1/handler.go``
(runClient) and ``manager.go`` (PluginConnected, PluginDisconnected).
"""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.aws.nodegroups import NodeGroupError, add_node
from sandbox.aws.shapes import Shape
from sandbox.nodes import nodeobject
from sandbox.settings import Settings
from tests.sandbox.nodes.cluster import Cluster, plugin_objects, slicing
from tests.sandbox.nodes.static_plugin import NAME, static_plugin

pytestmark = pytest.mark.asyncio(loop_scope="module")

GPU, PRESENT = "nvidia.com/gpu", "nvidia.com/gpu.present"
CHART_PLUGIN = "nvidia-device-plugin"


async def _added(nodes: Cluster, **more: Any) -> dict[str, Any]:
    instance = await add_node(nodes.aws, nodes.settings, "g5.xlarge", "team-b-gpu", **more)

    async def ready() -> dict[str, Any] | None:
        node = await nodes.node_of(instance)
        states = {c["type"]: c["status"] for c in (node or {}).get("status", {}).get("conditions", [])}
        return node if states.get("Ready") == "True" else None

    found: dict[str, Any] = await nodes.until(ready, lambda: nodes.kube.list("Node"))
    return found


async def test_a_gpu_node_of_another_team_joins_with_its_group_s_labels_and_taints(nodes: Cluster) -> None:
    node = await _added(nodes, labels={"team": "b"}, taints=["team=b:NoSchedule"])
    labels = node["metadata"]["labels"]
    assert labels["eks.amazonaws.com/nodegroup"] == "team-b-gpu"
    assert labels["team"] == "b"
    assert "karpenter.sh/nodepool" not in labels
    assert {"key": "team", "value": "b", "effect": "NoSchedule"} in node["spec"]["taints"]
    groups = (await nodes.aws.call("eks", "list_nodegroups", clusterName=nodes.settings.cluster_name))["nodegroups"]
    assert "team-b-gpu" in groups


async def test_nodeadm_labels_every_node_with_an_nvidia_device(nodes: Cluster) -> None:
    assert (await _added(nodes))["metadata"]["labels"][PRESENT] == "true"
    system = await nodes.kube.list("Node", label_selector="eks.amazonaws.com/nodegroup=system")
    assert all(PRESENT not in node["metadata"]["labels"] for node in system)


@pytest.mark.parametrize(("version", "gpus", "label"), [("1.35", 1, "true"), ("1.36", 8, "true"), ("1.34", 1, None)])
async def test_only_from_kubernetes_1_35_on(nodes: Cluster, version: str, gpus: int, label: str | None) -> None:
    shape = Shape("g5.xlarge", 4, 16384, 58, "amd64", gpus, "A10G", 24576, ("on-demand",), "nitro", 0)
    instance = {
        "InstanceId": "i-1",
        "PrivateDnsName": "n1",
        "Placement": {"AvailabilityZone": "us-west-2a"},
    }
    settings = Settings(state_dir=nodes.settings.state_dir, kubernetes_version=version)
    assert nodeobject.node_of(instance, shape, settings)["metadata"]["labels"].get(PRESENT) == label


@pytest.mark.parametrize("taint", ["team=b", "team=b:Never", ":NoSchedule"])
async def test_a_taint_that_is_none_is_refused(nodes: Cluster, taint: str) -> None:
    with pytest.raises(NodeGroupError, match="KEY=VALUE:EFFECT"):
        await add_node(nodes.aws, nodes.settings, "g5.xlarge", "team-b-gpu", taints=[taint])


async def test_of_two_plugins_the_one_that_registered_last_wins_and_a_loss_withdraws_all(nodes: Cluster) -> None:
    name = (await _added(nodes, labels={"two": "plugins"}))["metadata"]["name"]
    here = {"two": "plugins"}
    config_map, chart = plugin_objects({"four": slicing(4)}, "four")
    chart["spec"]["template"]["spec"]["nodeSelector"] = here
    await nodes.apply(config_map, chart)
    await nodes.allocatable(name, "4")

    # The static one comes later: the shares are gone, and nothing in the chart's ConfigMap says why.
    await nodes.apply(static_plugin(nodeSelector=here))
    await nodes.allocatable(name, "1")

    # The chart's pod is replaced: it registers last, and the shares are back.
    await _restart(nodes, CHART_PLUGIN, name)
    await nodes.allocatable(name, "4")

    # The loser goes. The kubelet knows the resource by its name only, and takes everything away.
    await nodes.kube.delete("DaemonSet", NAME, "kube-system")
    await nodes.allocatable(name, "0")
    # The winner is Ready and knows nothing of it; it registers again only when it starts again.
    pod = await _pod_of(nodes, CHART_PLUGIN, name)
    assert pod is not None
    assert all(c["status"] == "True" for c in pod["status"]["conditions"] if c["type"] == "Ready")
    await _restart(nodes, CHART_PLUGIN, name)
    await nodes.allocatable(name, "4")


async def test_the_loser_does_not_come_back_when_the_winner_goes(nodes: Cluster) -> None:
    name = (await _added(nodes, labels={"winner": "goes"}))["metadata"]["name"]
    here = {"winner": "goes"}
    config_map, chart = plugin_objects({"four": slicing(4)}, "four")
    chart["spec"]["template"]["spec"]["nodeSelector"] = here
    await nodes.kube.delete("DaemonSet", CHART_PLUGIN, "kube-system")
    await nodes.gone("DaemonSet", CHART_PLUGIN, "kube-system")
    await nodes.apply(static_plugin(nodeSelector=here))
    await nodes.allocatable(name, "1")
    await nodes.apply(config_map, chart)
    await nodes.allocatable(name, "4")
    await nodes.kube.delete("DaemonSet", CHART_PLUGIN, "kube-system")
    await nodes.allocatable(name, "0")
    assert await _pod_of(nodes, NAME, name) is not None


async def _pod_of(nodes: Cluster, daemon_set: str, node: str) -> dict[str, Any] | None:
    for pod in await nodes.kube.list("Pod", "kube-system"):
        owners = [owner["name"] for owner in pod["metadata"].get("ownerReferences") or []]
        if (
            pod["spec"].get("nodeName") == node
            and daemon_set in owners
            and not pod["metadata"].get("deletionTimestamp")
        ):
            return pod
    return None


async def _restart(nodes: Cluster, daemon_set: str, node: str) -> None:
    """Delete the pod, as ``kubectl rollout restart`` does in the end, and wait for the next one."""
    before = await _pod_of(nodes, daemon_set, node)
    assert before is not None
    await nodes.kube.delete("Pod", before["metadata"]["name"], "kube-system")

    async def replaced() -> bool:
        pod = await _pod_of(nodes, daemon_set, node)
        return pod is not None and pod["metadata"]["uid"] != before["metadata"]["uid"]

    await nodes.until(replaced)
