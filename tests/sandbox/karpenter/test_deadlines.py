"""What Karpenter gives up, and when. No kubelet runs here: nodes are what the test makes of the instances."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from sandbox.karpenter.conditions import condition, is_true
from sandbox.kube.times import now
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, node_class, node_pool, simulated

pytestmark = pytest.mark.asyncio(loop_scope="module")

Object = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """API server and Karpenter, three hundred times as fast as real: 15 minutes are 3 seconds."""
    async with simulated(tmp_path_factory.mktemp("alone"), "karpenter", speed=300.0) as made:
        await made.define_karpenter()
        await made.apply(_controller_pod())
        conditions = [{"type": "Ready", "status": "True"}]
        await made.kube.patch_status("Pod", "karpenter", {"phase": "Running", "conditions": conditions}, "kube-system")
        await made.apply(node_class())
        yield made


def _controller_pod() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "karpenter",
            "namespace": "kube-system",
            "labels": {"app.kubernetes.io/name": "karpenter"},
        },
        "spec": {"containers": [{"name": "controller", "image": "public.ecr.aws/karpenter/controller:1.14.1"}]},
    }


def _claim(name: str, class_name: str = "gpu", **more: Any) -> Object:
    """A NodeClaim made by hand."""
    values = [{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.xlarge"]}]
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": class_name}
    spec = {
        "nodeClassRef": reference,
        "requirements": values,
        "resources": {"requests": {"nvidia.com/gpu": "1"}},
        **more,
    }
    return {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": {"name": name}, "spec": spec}


async def _ready(cluster: Cluster, kind: str, name: str) -> None:
    async def look():
        return is_true(await cluster.kube.get(kind, name), "Ready")

    await cluster.until(look, lambda: cluster.kube.get(kind, name))


async def _reached(cluster: Cluster, name: str, state: str) -> Object:
    async def look():
        found = await cluster.kube.find("NodeClaim", name)
        return found if found and is_true(found, state) else None

    return await cluster.until(look, lambda: cluster.kube.get("NodeClaim", name))


async def _unschedulable(cluster: Cluster, pod: Object) -> None:
    """What the scheduler would write."""
    await cluster.apply(pod)
    mark = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": now()}
    await cluster.kube.patch_status("Pod", pod["metadata"]["name"], {"conditions": [mark]}, "default")


async def _join(cluster: Cluster, claim: Object, name: str, gpus: str = "1") -> None:
    """What the kubelet and the device plugin of the claim's instance would do, and the node controller."""
    resources = {"cpu": "4", "memory": "15Gi", "pods": "58", "nvidia.com/gpu": gpus}
    moment = now()
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": moment, "lastHeartbeatTime": moment}
    taint = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"providerID": claim["status"]["providerID"], "taints": [taint]},
    }
    status = {"conditions": [ready], "allocatable": resources, "capacity": resources}
    await cluster.kube.create({**node, "status": status})
    seen_ready = {"spec": {"taints": [{"$patch": "delete", "key": "node.kubernetes.io/not-ready"}]}}
    await cluster.kube.patch("Node", name, seen_ready, type="strategic")


async def test_a_claim_whose_node_never_registers_is_given_up_after_fifteen_minutes(alone: Cluster):
    await _ready(alone, "EC2NodeClass", "gpu")
    await alone.apply(_claim("never-registers"))
    claim = await _reached(alone, "never-registers", "Launched")
    shown = condition(claim, "Registered")
    assert (shown["status"], shown["reason"], shown["message"]) == (
        "Unknown",
        "NodeNotFound",
        "Node not registered with cluster",
    )
    await alone.gone("NodeClaim", "never-registers")
    instance = claim["status"]["providerID"].rsplit("/", 1)[1]

    async def terminated():
        return instance in {each["InstanceId"] for each in await alone.instances("terminated")}

    await alone.until(terminated)


async def test_a_claim_that_does_not_launch_stalls_everything_until_it_is_given_up(alone: Cluster):
    await alone.apply(node_class("unknown", amiSelectorTerms=[{"alias": "al2023@v19990101"}]))

    async def unknown():
        found = await alone.kube.get("EC2NodeClass", "unknown")
        return condition(found, "AMIsReady").get("status") == "Unknown" and condition(found, "SubnetsReady").get(
            "status"
        )

    await alone.until(unknown, lambda: alone.kube.get("EC2NodeClass", "unknown"))
    await alone.apply(node_pool("stalled"))
    await _ready(alone, "NodePool", "stalled")
    await alone.apply(_claim("no-launch", "unknown"))

    async def failing():
        found = await alone.kube.find("NodeClaim", "no-launch")
        return found is None or condition(found, "Launched").get("reason") == "NodeClassReadinessUnknown"

    await alone.until(failing, alone.claims)
    await _unschedulable(alone, gpu_pod("stalled", nodeSelector={"karpenter.sh/nodepool": "stalled"}))

    async def provisioned():
        claims = {each["metadata"]["name"] for each in await alone.claims()}
        made = {each for each in claims if each.startswith("stalled-")}
        assert not (made and "no-launch" in claims), "nothing is provisioned while a claim has no providerID"
        return made

    await alone.until(provisioned, alone.claims)
    await alone.kube.delete("Pod", "stalled", "default", grace_seconds=0)
    await alone.kube.delete("NodePool", "stalled")
    await alone.kube.delete("EC2NodeClass", "unknown")


async def test_a_claim_of_a_missing_class_goes_at_once_with_an_event(alone: Cluster):
    await alone.apply(_claim("missing", "nowhere"))
    await alone.gone("NodeClaim", "missing")
    text = 'NodeClaim missing event: resolving nodeclass, ec2nodeclasses.karpenter.k8s.aws "nowhere" not found'
    assert await alone.events("missing", "InsufficientCapacityError") == [text]


async def test_a_claim_of_another_provider_is_left_alone(alone: Cluster):
    claim = _claim("foreign")
    claim["spec"]["nodeClassRef"] |= {"group": "other.example", "kind": "OtherNodeClass"}
    await alone.apply(claim)
    await alone.apply(_claim("witness"))
    await _reached(alone, "witness", "Launched")
    found = await alone.kube.get("NodeClaim", "foreign")
    assert not found.get("status")
    assert not found["metadata"].get("finalizers")
    await alone.kube.delete("NodeClaim", "foreign")
    await alone.kube.delete("NodeClaim", "witness")
    await alone.gone("NodeClaim", "witness")


async def test_a_claim_without_requests_is_initialized_without_its_gpu(alone: Cluster):
    await alone.apply(_claim("bare", resources={}))
    claim = await _reached(alone, "bare", "Launched")
    await _join(alone, claim, "bare", gpus="0")
    await _reached(alone, "bare", "Initialized")
    await alone.kube.delete("NodeClaim", "bare")
    await alone.gone("NodeClaim", "bare")


async def test_ready_is_never_taken_back_and_a_deleted_node_takes_its_claim_along(alone: Cluster):
    await alone.apply(_claim("steady"))
    claim = await _reached(alone, "steady", "Launched")
    await _join(alone, claim, "steady")
    await _reached(alone, "steady", "Ready")
    down = [{"type": "Ready", "status": "False", "lastTransitionTime": now(), "lastHeartbeatTime": now()}]
    await alone.kube.patch_status("Node", "steady", {"conditions": down, "allocatable": {"nvidia.com/gpu": "0"}})
    await alone.clock.sleep(60)
    assert is_true(await alone.kube.get("NodeClaim", "steady"), "Ready")
    await alone.kube.delete("Node", "steady")
    await alone.gone("NodeClaim", "steady")
    await alone.gone("Node", "steady")


async def test_a_drift_whose_replacement_is_stuck_is_rolled_back_after_ten_minutes(alone: Cluster):
    await alone.apply(node_pool("stuck"))
    await _ready(alone, "NodePool", "stuck")
    await _unschedulable(alone, gpu_pod("first", nodeSelector={"karpenter.sh/nodepool": "stuck"}))

    async def made():
        return [each for each in await alone.claims() if each["metadata"]["name"].startswith("stuck-")]

    first = (await alone.until(made, alone.claims))[0]["metadata"]["name"]
    claim = await _reached(alone, first, "Launched")
    await _join(alone, claim, "stuck-node")
    await _reached(alone, first, "Initialized")
    await alone.kube.bind("default", "first", "stuck-node")
    await alone.kube.patch("NodePool", "stuck", {"spec": {"template": {"metadata": {"labels": {"new": "label"}}}}})

    async def replacement():
        found = [each["metadata"]["name"] for each in await made()]
        return [each for each in found if each != first]

    second = (await alone.until(replacement, alone.claims))[0]

    async def tainted():
        node = await alone.kube.get("Node", "stuck-node")
        return "karpenter.sh/disrupted" in [taint["key"] for taint in node["spec"].get("taints") or []]

    assert await tainted()

    async def untainted():
        return not await tainted()

    await alone.until(untainted)
    assert await alone.kube.find("NodeClaim", second) is not None, "the stuck replacement stays"
    await alone.clock.sleep(60)
    assert not await tainted(), "nothing is disrupted for a node that is not initialized"
    assert not (await alone.kube.get("NodeClaim", first))["metadata"].get("deletionTimestamp")


async def test_no_budget_stops_a_node_from_growing_too_old(alone: Cluster):
    disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "Never", "budgets": [{"nodes": "0"}]}
    await alone.apply(node_pool("old", disruption=disruption, expireAfter="5m"))
    await _ready(alone, "NodePool", "old")
    await _unschedulable(alone, gpu_pod("old", nodeSelector={"karpenter.sh/nodepool": "old"}))

    async def made():
        return [each for each in await alone.claims() if each["metadata"]["name"].startswith("old-")]

    first = (await alone.until(made, alone.claims))[0]["metadata"]["name"]
    await alone.kube.delete("Pod", "old", "default", grace_seconds=0)
    await alone.gone("NodeClaim", first)
