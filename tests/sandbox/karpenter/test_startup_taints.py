"""What a startup taint changes, in a whole simulated cluster.

Read in kubernetes-sigs/karpenter v1.14: ``pkg/controllers/nodeclaim/lifecycle/initialization.go`` (a claim is not
initialized before its startup taints are gone), ``liveness.go`` (no time limit after the registration),
``pkg/controllers/state/statenode.go`` (``Taints``: until then they are ignored, afterwards they count as any other;
``ValidateNodeDisruptable``: what is not initialized is not disrupted). That a taint in neither list buys nodes without
end is aws/karpenter-provider-aws#6355.
"""

from __future__ import annotations

import pytest

from sandbox.karpenter.conditions import condition, is_true
from tests.sandbox.karpenter.talk import PAUSE, claims, pool_pod, ready_pool, remove
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, node_pool

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.full]

GATE = {"key": "example.com/unproven", "effect": "NoSchedule"}
#: Simulated seconds in which Karpenter has long reacted to a pending pod (batches end after 10 s at most).
LONG = 40.0


async def _tolerant_plugin(cluster: Cluster) -> None:
    tolerations = [{"operator": "Exists"}]
    body = {"spec": {"template": {"spec": {"tolerations": tolerations}}}}
    await cluster.kube.patch("DaemonSet", "nvidia-device-plugin", body, "kube-system")


async def _taints(cluster: Cluster, node: str, *taints: dict[str, str]) -> None:
    await cluster.kube.patch("Node", node, {"spec": {"taints": list(taints) or None}})


async def _told(cluster: Cluster, claim: str, reason: str) -> dict[str, object]:
    async def look():
        found = await cluster.kube.get("NodeClaim", claim)
        return found if condition(found, "Initialized").get("reason") == reason else None

    return await cluster.until(look, cluster.claims)


async def test_a_pod_waits_for_one_node_until_its_startup_taint_is_removed(cluster: Cluster):
    await _tolerant_plugin(cluster)
    await ready_pool(cluster, node_pool("waits", startupTaints=[GATE]))
    await cluster.apply(pool_pod("user", "waits"))
    (claim,) = await claims(cluster, "waits", 1, "Registered")
    name = claim["metadata"]["name"]
    found = await _told(cluster, name, "StartupTaintsExist")
    assert condition(found, "Initialized")["message"] == 'StartupTaint "example.com/unproven:NoSchedule" still exists'
    node = claim["status"]["nodeName"]
    # DaemonSets that tolerate it run, so GPUs are there; Karpenter, which has not initialized the node, stays calm.
    await cluster.allocatable(node, "1")
    await cluster.clock.sleep(LONG)
    assert [each["metadata"]["name"] for each in await claims(cluster, "waits")] == [name]
    assert not (await cluster.pod("user"))["spec"].get("nodeName")
    shown = await cluster.kube.get("Node", node)
    assert "karpenter.sh/initialized" not in shown["metadata"]["labels"]

    left = [taint for taint in shown["spec"]["taints"] if taint["key"] != GATE["key"]]
    await _taints(cluster, node, *left)
    await cluster.pod_phase("user", "Running")
    await claims(cluster, "waits", 1, "Initialized")

    # From now on it is a taint like any other: the next pod needs another node.
    await cluster.kube.delete("Pod", "user", "default", grace_seconds=0)
    await _taints(cluster, node, *left, GATE)
    await cluster.apply(pool_pod("next", "waits"))
    await claims(cluster, "waits", 2)
    await remove(cluster, "waits", "next")


async def test_an_idle_node_with_its_startup_taint_is_not_consolidated(cluster: Cluster):
    await _tolerant_plugin(cluster)
    disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "10s", "budgets": [{"nodes": "100%"}]}
    await ready_pool(cluster, node_pool("idle", startupTaints=[GATE], disruption=disruption))
    await cluster.apply(pool_pod("gone", "idle"))
    (claim,) = await claims(cluster, "idle", 1, "Registered")
    await cluster.allocatable(claim["status"]["nodeName"], "1")
    await cluster.kube.delete("Pod", "gone", "default", grace_seconds=0)
    await cluster.clock.sleep(4 * LONG)
    (still,) = await claims(cluster, "idle")
    assert not still["metadata"].get("deletionTimestamp")
    shown = await cluster.kube.get("Node", claim["status"]["nodeName"])
    left = [taint for taint in shown["spec"]["taints"] if taint["key"] != GATE["key"]]
    await _taints(cluster, claim["status"]["nodeName"], *left)
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await remove(cluster, "idle")


async def test_a_taint_that_no_list_declares_buys_another_node(cluster: Cluster):
    await _tolerant_plugin(cluster)
    await ready_pool(cluster, node_pool("twice-bought", limits={"nodes": "2"}))
    await cluster.apply(pool_pod("unlucky", "twice-bought"))
    (claim,) = await claims(cluster, "twice-bought", 1, "Registered")
    shown = await cluster.kube.get("Node", claim["status"]["nodeName"])
    await _taints(cluster, claim["status"]["nodeName"], *shown["spec"]["taints"], GATE)
    await claims(cluster, "twice-bought", 2)
    await remove(cluster, "twice-bought", "unlucky")


async def test_the_kubelet_keeps_conditions_of_others(cluster: Cluster):
    """kubernetes v1.36 ``pkg/kubelet/kubelet_node_status.go``: each setter changes the conditions of its own types;
    what is sent is a strategic merge patch, which merges conditions by their type."""
    await _tolerant_plugin(cluster)
    await ready_pool(cluster, node_pool("foreign-condition"))
    await cluster.apply(pool_pod("any", "foreign-condition"))
    await cluster.pod_phase("any", "Running")
    (claim,) = await claims(cluster, "foreign-condition", 1, "Initialized")
    node = claim["status"]["nodeName"]
    ours = {
        "type": "example.com/Proven",
        "status": "True",
        "reason": "ProofPassed",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z",
    }
    await cluster.kube.patch(
        "Node",
        node,
        {"status": {"conditions": [ours]}},
        subresource="status",
        type="strategic",
    )
    shown = await cluster.kube.get("Node", node)
    assert condition(shown, "example.com/Proven") == ours
    assert is_true(shown, "Ready")
    # The kubelet reports again: the plugin goes, then comes back.
    for value, count in ((None, "0"), ("true", "1")):
        await cluster.kube.patch("Node", node, {"metadata": {"labels": {"nvidia.com/gpu.present": value}}})
        await cluster.allocatable(node, count)
    assert condition(await cluster.kube.get("Node", node), "example.com/Proven") == ours
    await remove(cluster, "foreign-condition", "any")


async def test_what_fills_a_closed_node_buys_another_one_for_the_pod_that_waits_unless_the_pool_is_at_its_limit(
    cluster: Cluster,
):
    """What is bound counts, whatever its priority (``pkg/controllers/state/cluster.go``, ``UpdatePod``), and a pod that
    does not tolerate the taint never is about to preempt it (``pkg/utils/pod/scheduling.go``, ``IsProvisionable``)."""
    await _tolerant_plugin(cluster)
    await ready_pool(cluster, node_pool("filled", startupTaints=[GATE], limits={"nodes": "1"}))
    await cluster.apply(pool_pod("user", "filled"))
    (claim,) = await claims(cluster, "filled", 1, "Registered")
    node = claim["status"]["nodeName"]
    await cluster.allocatable(node, "1")
    probe = gpu_pod(
        "probe", 1, PAUSE, nodeSelector={"kubernetes.io/hostname": node}, tolerations=[{"operator": "Exists"}]
    )
    await cluster.apply(probe)
    await cluster.pod_phase("probe", "Running")
    await cluster.clock.sleep(LONG)
    assert len(await claims(cluster, "filled")) == 1
    assert "node limits have been exhausted" in await cluster.event(
        "user", "FailedScheduling", "Failed to schedule pod"
    )
    await cluster.kube.patch("NodePool", "filled", {"spec": {"limits": {"nodes": "3"}}})
    await claims(cluster, "filled", 2)
    await cluster.kube.delete("Pod", "probe", "default", grace_seconds=0)
    await remove(cluster, "filled", "user")
