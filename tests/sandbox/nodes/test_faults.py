"""Faults of nodes, and the two other programs of the device plugin's image: feature discovery and the MPS daemon."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.karpenter.conditions import condition, is_true
from sandbox.kube.client import Kube
from sandbox.kube.resources import ApiError
from tests.sandbox.nodes.cluster import (
    GPU_TOLERATION,
    PLUGIN_IMAGE,
    PROBE_IMAGE,
    Cluster,
    gpu_pod,
    plugin_objects,
    slicing,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

LABEL = "nvidia.com/device-plugin.config"
MPS = "version: v1\nsharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 10}]}}\n"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return {}


async def _node(nodes: Cluster, made: dict[str, str]) -> str:
    """A node with one A10G that announces four replicas."""
    if not made:
        await nodes.apply(*plugin_objects({"four": slicing(4), "two": slicing(2), "mps": MPS}, "four"))
        made["name"] = await nodes.ready_node(await nodes.launch("g5.xlarge"), **{"nvidia.com__gpu.present": "true"})
    await _use(nodes, made["name"], "four")
    await nodes.allocatable(made["name"], "4")
    return made["name"]


async def _use(nodes: Cluster, name: str, entry: str) -> None:
    await nodes.kube.patch("Node", name, {"metadata": {"labels": {LABEL: entry}}})


def _daemon(name: str, program: str, **spec: Any) -> dict[str, Any]:
    """A DaemonSet of the plugin's image with its ConfigMap, running another of its programs."""
    made = plugin_objects({}, "four")[1]
    made["metadata"]["name"] = name
    labels = {"app": name}
    made["spec"]["selector"]["matchLabels"] = labels
    made["spec"]["template"]["metadata"]["labels"] = labels
    pod = made["spec"]["template"]["spec"]
    pod["containers"][1] |= {"name": program, "command": [program]}
    pod |= spec
    return made


async def test_the_sharing_block_is_ignored(nodes: Cluster, made):
    name = await _node(nodes, made)
    nodes.settings.faults.set("no-sharing-block")
    try:
        await _use(nodes, name, "two")
        await nodes.allocatable(name, "1")
    finally:
        nodes.settings.faults.clear("no-sharing-block")


async def test_another_number_of_replicas_is_announced(nodes: Cluster, made):
    name = await _node(nodes, made)
    nodes.settings.faults.set("advertise-replicas", {"value": 3})
    try:
        await _use(nodes, name, "two")
        await nodes.allocatable(name, "3")
    finally:
        nodes.settings.faults.clear("advertise-replicas")


async def test_gpus_never_appear_until_the_fault_is_cleared(nodes: Cluster, made):
    name = await _node(nodes, made)
    nodes.settings.faults.set("gpu-never-registers", {"nodeNamePrefix": name})
    try:
        await _use(nodes, name, "two")
        await nodes.allocatable(name, "0")
        await nodes.clock.sleep(120)
        await nodes.allocatable(name, "0")
    finally:
        nodes.settings.faults.clear("gpu-never-registers")
    await nodes.allocatable(name, "2")


async def test_a_fault_about_another_pool_is_none(nodes: Cluster, made):
    name = await _node(nodes, made)
    nodes.settings.faults.set("gpu-never-registers", {"pool": "another"})
    try:
        await _use(nodes, name, "two")
        await nodes.allocatable(name, "2")
    finally:
        nodes.settings.faults.clear("gpu-never-registers")


async def test_gpus_are_late(nodes: Cluster, made):
    name = await _node(nodes, made)
    nodes.settings.faults.set("gpu-late", {"seconds": 200})
    try:
        await _use(nodes, name, "two")
        await nodes.allocatable(name, "0")
        await nodes.clock.sleep(60)
        await nodes.allocatable(name, "0")
        await nodes.allocatable(name, "2")
    finally:
        nodes.settings.faults.clear("gpu-late")


async def test_images_of_a_name_cannot_be_pulled(nodes: Cluster, made):
    name = await _node(nodes, made)
    nodes.settings.faults.set("image-unpullable", {"image": "nvidia/cuda"})
    try:
        await nodes.apply(gpu_pod("unpullable", 0, PROBE_IMAGE, ["true"], nodeName=name))
        text = await nodes.event("unpullable", "Failed", "Failed to pull image")
        assert text.endswith(": not found")
    finally:
        nodes.settings.faults.clear("image-unpullable")
    await nodes.pod_phase("unpullable", "Succeeded")


async def test_a_node_of_a_pool_never_gets_ready(nodes: Cluster):
    nodes.settings.faults.set("node-never-ready")
    try:
        instance = await nodes.launch("m5.large", **{"karpenter.sh__nodepool": "p"})

        async def registered():
            return await nodes.node_of(instance)

        node = await nodes.until(registered, lambda: nodes.kube.list("Node"))
        keys = {taint["key"] for taint in node["spec"]["taints"]}
        assert keys == {"karpenter.sh/unregistered", "node.kubernetes.io/not-ready"}
        assert node["metadata"]["labels"]["karpenter.sh/nodepool"] == "p"
        await nodes.clock.sleep(60)
        ready = condition(await nodes.node_of(instance), "Ready")
        assert (ready["status"], ready["reason"]) == ("False", "KubeletNotReady")
    finally:
        nodes.settings.faults.clear("node-never-ready")

    async def recovers():
        return is_true(await nodes.node_of(instance), "Ready")

    await nodes.until(recovers)
    await nodes.terminate(instance)


async def test_features_are_labelled_only_where_they_are_discovered(nodes: Cluster, made):
    name = await _node(nodes, made)
    assert "nvidia.com/gpu.count" not in (await nodes.kube.get("Node", name))["metadata"]["labels"]
    await nodes.apply(_daemon("gfd", "gpu-feature-discovery"))

    async def labelled():
        labels = (await nodes.kube.get("Node", name))["metadata"]["labels"]
        return labels if "nvidia.com/gpu.count" in labels else None

    labels = await nodes.until(labelled, lambda: nodes.kube.list("Pod", "kube-system"))
    assert labels["nvidia.com/gpu.count"] == "1"
    assert labels["nvidia.com/gpu.replicas"] == "4"
    assert labels["nvidia.com/gpu.sharing-strategy"] == "time-slicing"
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-A10G-SHARED"
    assert labels["nvidia.com/gpu.memory"] == "23028"
    assert labels["nvidia.com/mps.capable"] == "true"
    await nodes.kube.delete("DaemonSet", "gfd", "kube-system")


async def test_mps_waits_for_its_daemon(nodes: Cluster, made):
    """Without the daemon the plugin tries for ever and says so; with it, and the label, it registers."""
    name = await _node(nodes, made)
    await nodes.kube.patch("Node", name, {"metadata": {"labels": {"nvidia.com/mps.capable": None}}})
    await _use(nodes, name, "mps")
    await nodes.allocatable(name, "0")
    pods = await nodes.kube.list("Pod", "kube-system", label_selector="app.kubernetes.io/name=nvidia-device-plugin")
    plugin = pods[0]["metadata"]["name"]

    async def complaint():
        path = f"/api/v1/namespaces/kube-system/pods/{plugin}/log"
        log = await nodes.kube.raw("GET", path, query={"container": "nvidia-device-plugin-ctr"})
        return "error checking MPS daemon health" in log and "Retrying in 30s" in log

    await nodes.until(complaint)
    await nodes.apply(
        _daemon(
            "mps",
            "mps-control-daemon",
            nodeSelector={"nvidia.com/mps.capable": "true"},
            initContainers=[{"name": "mount", "image": PLUGIN_IMAGE, "command": ["mps-control-daemon", "mount-shm"]}],
            tolerations=[GPU_TOLERATION],
        )
    )
    await nodes.kube.patch("Node", name, {"metadata": {"labels": {"nvidia.com/mps.capable": "true"}}})
    await nodes.allocatable(name, "10")


async def test_a_dead_kubelet_is_noticed_and_comes_back(nodes: Cluster, made, monkeypatch):
    monkeypatch.setattr("sandbox.controllers.nodelifecycle.LEAST_GRACE", 2.5)
    name = await _node(nodes, made)
    nodes.settings.faults.set("kubelet-dead", {"nodeNamePrefix": name})
    try:

        async def unknown():
            ready = condition(await nodes.kube.get("Node", name), "Ready")
            return ready["status"] == "Unknown" and ready["reason"] == "NodeStatusUnknown"

        await nodes.until(unknown, lambda: nodes.kube.get("Node", name))
    finally:
        nodes.settings.faults.clear("kubelet-dead")

    async def ready_again():
        return is_true(await nodes.kube.get("Node", name), "Ready")

    await nodes.until(ready_again)


async def test_an_api_server_that_answers_500_for_a_while_loses_no_pod(nodes: Cluster, made, monkeypatch):
    name = await _node(nodes, made)
    real, failures = Kube.raw, 20

    async def flaky(self, method, path, **request):
        nonlocal failures
        if self.user_agent == "sandbox-nodes" and failures and "/pods/sturdy" in path:
            failures -= 1
            raise ApiError(500, "InternalError", "injected")
        return await real(self, method, path, **request)

    monkeypatch.setattr("sandbox.kube.retrying.PAUSE", 0.02)
    monkeypatch.setattr(Kube, "raw", flaky)
    await nodes.apply(gpu_pod("sturdy", 0, PROBE_IMAGE, ["true"], nodeName=name))
    await nodes.pod_phase("sturdy", "Succeeded")
    await nodes.kube.delete("Pod", "sturdy", "default")
    await nodes.gone("Pod", "sturdy", "default")
    assert failures == 0
