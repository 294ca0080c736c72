"""What is lost when a machine goes: pods that were still running, and nothing else."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.sandbox.nodes.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")
Object = dict[str, Any]
BUSYBOX = "busybox:1.36"
PAUSE = "registry.k8s.io/pause:3.10"


def pod(name: str, node: str, image: str = PAUSE, *command: str, **spec: Any) -> Object:
    container: Object = {"name": "main", "image": image}
    if command:
        container["command"] = list(command)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "restartPolicy": "Never", "containers": [container], **spec},
    }


async def lost(nodes: Cluster, instance: str, count: int | None = None) -> dict[str, Object]:
    """Losses on an instance by the pods' names; waits for so many, or for the machine's end."""

    async def look() -> dict[str, Object] | None:
        found = {each["name"]: each for each in nodes.settings.losses.shown() if each["instance"] == instance}
        ended = await nodes.node_of(instance) is None
        return found if ended and (count is None or len(found) == count) else None

    if count == 0:
        await nodes.until(lambda: _gone(nodes, instance))
        return {each["name"]: each for each in nodes.settings.losses.shown() if each["instance"] == instance}
    found: dict[str, Object] = await nodes.until(look)
    return found


async def _gone(nodes: Cluster, instance: str) -> bool:
    return await nodes.node_of(instance) is None


async def test_running_pods_are_lost_and_finished_ones_and_those_of_the_node_are_not(nodes: Cluster) -> None:
    instance = await nodes.launch()
    node = await nodes.ready_node(instance)
    mirror = pod("mirror", node)
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    labels = {"app": "of-the-node"}
    daemon_set = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "of-the-node", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "main", "image": PAUSE}]},
            },
        },
    }
    await nodes.apply(
        pod("runs", node), pod("ended", node, BUSYBOX, "true"), pod("unpulled", node, "no.such/image:1"), daemon_set
    )
    made = await nodes.kube.create(mirror)
    assert made["metadata"]["name"] == "mirror"
    running = await nodes.pod_phase("runs", "Running")
    await nodes.pod_phase("ended", "Succeeded")
    await nodes.pod_phase("mirror", "Running")

    async def daemon() -> bool:
        pods = await nodes.kube.list("Pod", "default", label_selector="app=of-the-node")
        return any(each["spec"].get("nodeName") == node and each["status"]["phase"] == "Running" for each in pods)

    await nodes.until(daemon)
    began = time.time()
    await nodes.terminate(instance)
    found = await lost(nodes, instance, 1)
    assert set(found) == {"runs"}
    loss = found["runs"]
    assert (loss["namespace"], loss["uid"]) == ("default", running["metadata"]["uid"])
    assert (loss["node"], loss["terminating"]) == (node, False)
    assert loss["state"] in ("shutting-down", "terminated")
    assert began - 1 < loss["time"] < time.time()
    assert 0 < loss["seconds"] < 40
    await nodes.kube.delete("DaemonSet", "of-the-node", "default")


async def test_a_pod_that_ended_within_its_grace_is_not_lost_and_one_still_in_it_is(nodes: Cluster) -> None:
    instance = await nodes.launch()
    node = await nodes.ready_node(instance)
    # PID 1 without a handler ignores SIGTERM; a server handles it.
    await nodes.apply(
        pod("polite", node),
        pod("deaf", node, BUSYBOX, "sleep", "100000", terminationGracePeriodSeconds=100000),
    )
    await nodes.pod_phase("polite", "Running")
    await nodes.pod_phase("deaf", "Running")
    await nodes.kube.delete("Pod", "polite", "default")
    await nodes.kube.delete("Pod", "deaf", "default")
    await nodes.gone("Pod", "polite", "default")
    await nodes.terminate(instance)
    found = await lost(nodes, instance, 1)
    assert {name: each["terminating"] for name, each in found.items()} == {"deaf": True}


async def test_nothing_is_lost_on_an_empty_machine_nor_when_the_sandbox_s_nodes_are_stopped(nodes: Cluster) -> None:
    empty, used = await nodes.launch(), await nodes.launch()
    node = await nodes.ready_node(used)
    await nodes.ready_node(empty)
    await nodes.apply(pod("stays", node))
    await nodes.pod_phase("stays", "Running")
    await nodes.terminate(empty)
    assert await lost(nodes, empty, 0) == {}
    await nodes.stop("nodes")
    assert [each for each in nodes.settings.losses.shown() if each["instance"] == used] == []
    nodes.start("nodes")
