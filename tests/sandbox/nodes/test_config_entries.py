"""A node whose label names an entry that the plugin's ConfigMap has, has no longer, or has not yet.

After NVIDIA/k8s-device-plugin v0.20.0: ``cmd/config-manager/main.go`` (``updateConfigName``, ``updateSymlink``),
``api/config/v1/config.go`` (``parseConfig``), chart ``templates/_helpers.tpl`` (``checksum/config``).
"""

from __future__ import annotations

import pytest

from sandbox.kube.client import Object
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, plugin_objects, slicing

pytestmark = pytest.mark.asyncio(loop_scope="module")

LABEL = "nvidia.com/device-plugin.config"
EXCLUSIVE, FOUR, EIGHT = {"exclusive": "version: v1\n"}, {"four": slicing(4)}, {"eight": slicing(8)}


def rolled(configs: dict[str, str]) -> list[Object]:
    """The plugin as the chart renders it: its pods are rolled with each change of the ConfigMap."""
    objects = plugin_objects(configs, "exclusive")
    checksum = {"checksum/config": str(sorted(configs))}
    objects[1]["spec"]["template"]["metadata"]["annotations"] = checksum
    return objects


async def plugin_pod(nodes: Cluster, node: str) -> Object | None:
    pods = await nodes.kube.list("Pod", "kube-system", field_selector=f"spec.nodeName={node}")
    found = [each for each in pods if each["metadata"]["name"].startswith("nvidia")]
    return max(found, key=lambda each: each["metadata"]["creationTimestamp"], default=None)


def restarts(pod: Object | None, container: str, kind: str = "containerStatuses") -> int:
    statuses = ((pod or {}).get("status") or {}).get(kind) or []
    return next((each.get("restartCount", 0) for each in statuses if each["name"] == container), 0)


async def said(nodes: Cluster, pod: Object, container: str) -> str:
    path = f"/api/v1/namespaces/kube-system/pods/{pod['metadata']['name']}/log"
    return str(await nodes.kube.raw("GET", path, query={"container": container}))


async def test_an_entry_that_goes_while_a_node_carries_it(nodes: Cluster) -> None:
    await nodes.apply(*rolled({**EXCLUSIVE, **FOUR}))
    node = await nodes.ready_node(await nodes.launch("g5.xlarge"), **{"nvidia.com__gpu.present": "true"})
    await nodes.kube.patch("Node", node, {"metadata": {"labels": {LABEL: "four"}}})
    await nodes.allocatable(node, "4")
    await nodes.apply(gpu_pod("user", nodeName=node))
    before = await nodes.pod_phase("user", "Running")

    await nodes.apply(*rolled({**EXCLUSIVE, **EIGHT}))

    async def looping() -> Object | None:
        pod = await plugin_pod(nodes, node)
        return pod if restarts(pod, "nvidia-device-plugin-init", "initContainerStatuses") >= 1 else None

    pod = await nodes.until(looping, lambda: plugin_pod(nodes, node))
    assert "specified config four does not exist" in await said(nodes, pod, "nvidia-device-plugin-init")
    await nodes.allocatable(node, "0")
    # The kubelet stops nothing that runs.
    user = await nodes.pod("user")
    assert (user["metadata"]["uid"], user["status"]["phase"]) == (before["metadata"]["uid"], "Running")

    await nodes.apply(*rolled({**EXCLUSIVE, **FOUR, **EIGHT}))
    await nodes.allocatable(node, "4")


async def test_a_running_pod_notices_a_missing_entry_only_when_it_starts_anew(nodes: Cluster) -> None:
    """Without a new checksum nothing rolls; a container that is restarted opens a link that leads nowhere."""
    (node,) = [each["metadata"]["name"] for each in await nodes.kube.list("Node", label_selector=LABEL)]
    await nodes.kube.patch("ConfigMap", "plugin-configs", {"data": {"four": None}}, "kube-system")
    await nodes.allocatable(node, "4")
    # To another entry and back: the manager exits over the entry, the plugin over the file.
    await nodes.kube.patch("Node", node, {"metadata": {"labels": {LABEL: "eight"}}})
    await nodes.allocatable(node, "8")
    await nodes.kube.patch("ConfigMap", "plugin-configs", {"data": {"eight": None}}, "kube-system")
    await nodes.kube.patch("Node", node, {"metadata": {"labels": {LABEL: "exclusive"}}})
    await nodes.allocatable(node, "1")
    await nodes.kube.patch("Node", node, {"metadata": {"labels": {LABEL: "four"}}})

    async def looping() -> Object | None:
        found = await plugin_pod(nodes, node)
        return found if restarts(found, "nvidia-device-plugin-sidecar") >= 1 else None

    found = await nodes.until(looping, lambda: plugin_pod(nodes, node))
    assert "specified config four does not exist" in await said(nodes, found, "nvidia-device-plugin-sidecar")
    # What the plugin serves stays as it was.
    await nodes.allocatable(node, "1")


async def test_a_plugin_whose_file_is_gone_exits_over_it(nodes: Cluster) -> None:
    from sandbox.nodes.gpus.plugin_config import ConfigError
    from sandbox.nodes.pods.plugin import PluginPod

    (node,) = [each["metadata"]["name"] for each in await nodes.kube.list("Node", label_selector=LABEL)]
    pod = await plugin_pod(nodes, node)

    class Host:
        kube = nodes.kube

    assert pod is not None
    shared = PluginPod(Host(), pod)  # type: ignore[arg-type]
    shared.entry = "gone"
    with pytest.raises(ConfigError, match=r"error opening config file: open /config/config\.yaml: no such file"):
        await shared.config()
