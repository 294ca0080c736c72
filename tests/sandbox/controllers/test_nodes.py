"""Dead kubelets, taints from conditions, NoExecute eviction, PodGC."""

from __future__ import annotations

import asyncio

from sandbox.controllers.objects import condition, holds, meta, phase
from sandbox.kube.times import now
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


def _taints(node: dict[str, object]) -> set[tuple[str, str]]:
    return {(each["key"], each["effect"]) for each in node["spec"].get("taints") or []}  # type: ignore[attr-defined]


async def test_not_ready_and_ready_again(cluster: World) -> None:
    await cluster.create(builders.node(ready=False))
    key = "node.kubernetes.io/not-ready"
    await cluster.object("Node", "n1", None, lambda node: _taints(node) == {(key, "NoSchedule"), (key, "NoExecute")})
    await cluster.kube.patch_status("Node", "n1", builders.node()["status"])
    await cluster.object("Node", "n1", None, lambda node: not _taints(node))


async def test_taints_of_others_stay(cluster: World) -> None:
    foreign = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}
    await cluster.create(builders.node(unschedulable=True, taints=[foreign]))
    both = {("karpenter.sh/disrupted", "NoSchedule"), ("node.kubernetes.io/unschedulable", "NoSchedule")}
    await cluster.object("Node", "n1", None, lambda node: _taints(node) == both)
    await cluster.patch("Node", "n1", {"spec": {"unschedulable": False}})
    await cluster.object("Node", "n1", None, lambda node: _taints(node) == {("karpenter.sh/disrupted", "NoSchedule")})


async def _heart_of(cluster: World, node: str) -> None:
    """A kubelet's lease, renewed ten times a second."""
    lease = builders.plain("Lease", node, "kube-node-lease", "coordination.k8s.io/v1", spec={"renewTime": now(True)})
    await cluster.create(lease)
    while True:
        await cluster.kube.patch("Lease", node, {"spec": {"renewTime": now(True)}}, "kube-node-lease")
        await asyncio.sleep(0.1)


async def test_a_dead_kubelet_is_noticed_and_its_pods_leave_after_their_toleration(fast_cluster: World) -> None:
    cluster = fast_cluster
    await cluster.create(builders.node("n1"), builders.workload("Deployment", replicas=1))
    beating = asyncio.create_task(_heart_of(cluster, "n1"))
    (pod,) = await cluster.pods(1, lambda pod: holds(pod, "Ready"))
    beating.cancel()
    cluster.dead.add("n1")
    node = await cluster.object(
        "Node", "n1", None, lambda node: (condition(node, "Ready") or {})["status"] == "Unknown"
    )
    ready = condition(node, "Ready") or {}
    assert (ready["reason"], ready["message"]) == ("NodeStatusUnknown", "Kubelet stopped posting node status.")
    key = "node.kubernetes.io/unreachable"
    await cluster.object("Node", "n1", None, lambda node: _taints(node) == {(key, "NoSchedule"), (key, "NoExecute")})
    name = meta(pod)["name"]
    await cluster.object("Pod", name, "default", lambda pod: (condition(pod, "Ready") or {})["status"] == "False")
    # 300 s of toleration are 3 s here; then the pod is deleted, but nobody confirms it.
    pod = await cluster.object("Pod", name, "default", lambda pod: "deletionTimestamp" in meta(pod))
    assert (condition(pod, "DisruptionTarget") or {})["reason"] == "DeletionByTaintManager"
    await cluster.pods(2, bool)
    await cluster.kube.delete("Node", "n1")
    await cluster.gone("Pod", name, "default")


async def test_a_lease_keeps_a_node_alive(fast_cluster: World) -> None:
    cluster = fast_cluster
    await cluster.create(builders.node("n1"), builders.node("n2"))
    lease = builders.plain("Lease", "n1", "kube-node-lease", "coordination.k8s.io/v1", spec={"renewTime": now(True)})
    await cluster.create(lease)
    for _ in range(6):
        await cluster.kube.patch("Lease", "n1", {"spec": {"renewTime": now(True)}}, "kube-node-lease")
        await cluster.informers("Node").wait_for_change(0.2)
    await cluster.object("Node", "n2", None, lambda node: (condition(node, "Ready") or {})["status"] == "Unknown")
    assert (condition(await cluster.kube.get("Node", "n1"), "Ready") or {})["status"] == "True"


async def test_an_untolerated_no_execute_taint_evicts_at_once(cluster: World) -> None:
    tolerant = builders.pod("stays", tolerations=[{"key": "gone", "operator": "Exists"}])
    await cluster.create(builders.node(), builders.pod("goes"), tolerant)
    await cluster.pods(2, lambda pod: phase(pod) == "Running")
    await cluster.patch("Node", "n1", {"spec": {"taints": [{"key": "gone", "effect": "NoExecute"}]}})
    await cluster.gone("Pod", "goes", "default")
    await cluster.event("TaintManagerEviction", lambda event: "Marking for deletion" in event["message"])
    assert phase(await cluster.kube.get("Pod", "stays", "default")) == "Running"


async def test_eviction_is_cancelled_when_the_taint_goes(cluster: World) -> None:
    patient = [{"key": "soon", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3600}]
    await cluster.create(builders.node(), builders.pod("p", tolerations=patient))
    await cluster.pods(1, lambda pod: phase(pod) == "Running")
    await cluster.patch("Node", "n1", {"spec": {"taints": [{"key": "soon", "effect": "NoExecute"}]}})
    await cluster.object("Node", "n1", None, lambda node: node["spec"].get("taints"))
    await cluster.patch("Node", "n1", {"spec": {"taints": None}})
    event = await cluster.event("TaintManagerEviction")
    assert event["message"] == "Cancelling deletion of Pod default/p"


async def test_pods_of_a_node_that_is_gone_are_removed(fast_cluster: World) -> None:
    cluster = fast_cluster
    await cluster.create(builders.node(), builders.pod("p"))
    await cluster.pods(1, lambda pod: phase(pod) == "Running")
    cluster.dead.add("n1")
    failed: list[str] = []
    cluster.informers("Pod").add_handler(
        lambda _change, pod, _old: failed.append((condition(pod, "DisruptionTarget") or {}).get("reason", ""))
    )
    await cluster.kube.delete("Node", "n1")
    await cluster.gone("Pod", "p", "default")
    assert "DeletionByPodGC" in failed
