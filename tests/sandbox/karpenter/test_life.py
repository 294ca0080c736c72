"""Karpenter in a whole simulated cluster, in the order of the measured behaviours that it imitates."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from sandbox.aws.interruptions import Kind, message
from sandbox.karpenter.conditions import condition, is_true
from sandbox.kube import ApiError
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, node_class, node_pool

pytestmark = pytest.mark.asyncio(loop_scope="module")

Object = dict[str, Any]
PAUSE = "registry.k8s.io/pause:3.10"


async def _shown(cluster: Cluster, kind: str, name: str, *types: str) -> dict[str, tuple[str, str, str]]:
    """Conditions by type as (status, reason, message), once they all are there."""

    async def look():
        found = await cluster.kube.find(kind, name)
        shown = {each: condition(found or {}, each) for each in types}
        return found if all(shown.values()) else None

    found = await cluster.until(look, lambda: cluster.kube.find(kind, name))
    shown = {each: condition(found, each) for each in types}
    return {key: (value["status"], value["reason"], value["message"]) for key, value in shown.items()}


async def _ready_pool(cluster: Cluster, pool: Object) -> None:
    await cluster.apply(pool)
    name = pool["metadata"]["name"]

    async def ready():
        return is_true(await cluster.kube.get("NodePool", name), "Ready")

    await cluster.until(ready, lambda: cluster.kube.get("NodePool", name))


async def _claims(cluster: Cluster, pool: str, count: int | None = None, state: str | None = None) -> list[Object]:
    """The pool's claims; waits for ``count`` of them in that state."""

    async def look():
        found = [each for each in await cluster.claims() if each["metadata"]["labels"]["karpenter.sh/nodepool"] == pool]
        if state is not None:
            found = [each for each in found if is_true(each, state)]
        return found if count is None or len(found) == count else None

    if count is None:
        return await look() or []
    return await cluster.until(look, cluster.claims)


async def _remove(cluster: Cluster, pool: str, *pods: str) -> None:
    for pod in pods:
        await cluster.kube.delete("Pod", pod, "default", grace_seconds=0)
    await cluster.kube.delete("NodePool", pool)

    async def none():
        return not await _claims(cluster, pool)

    await cluster.until(none, cluster.claims)


def _pod(name: str, pool: str, gpus: int = 1, **more: Any) -> Object:
    return gpu_pod(name, gpus, PAUSE, nodeSelector={"karpenter.sh/nodepool": pool}, **more)


# --- classes and pools ---


async def test_a_class_finds_its_images_network_and_profile(cluster: Cluster):
    types = ("AMIsReady", "SubnetsReady", "SecurityGroupsReady", "InstanceProfileReady", "ValidationSucceeded", "Ready")

    async def ready():
        return is_true(await cluster.kube.get("EC2NodeClass", "gpu"), "Ready")

    await cluster.until(ready, lambda: cluster.kube.get("EC2NodeClass", "gpu"))
    shown = await _shown(cluster, "EC2NodeClass", "gpu", *types)
    assert {status for status, _, _ in shown.values()} == {"True"}
    found = await cluster.kube.get("EC2NodeClass", "gpu")
    assert condition(found, "Ready")["observedGeneration"] == found["metadata"]["generation"]
    assert found["metadata"]["finalizers"] == ["karpenter.k8s.aws/termination"]
    assert len(found["status"]["subnets"]) == 3
    assert {"nvidia" in each["name"] for each in found["status"]["amis"]} == {True, False}
    answer = await cluster.aws.call(
        "iam", "get_instance_profile", InstanceProfileName=found["status"]["instanceProfile"]
    )
    assert answer["InstanceProfile"]["Roles"][0]["RoleName"] == "KarpenterNodeRole-demo-gpu"


@pytest.mark.parametrize(
    ("spec", "kind", "reason", "message"),
    [
        (
            {"amiFamily": "AL2023", "amiSelectorTerms": [{"id": "ami-00000000"}]},
            "AMIsReady",
            "AMINotFound",
            "AMISelector did not match any AMIs",
        ),
        (
            {"subnetSelectorTerms": [{"tags": {"no": "such"}}]},
            "SubnetsReady",
            "SubnetsNotFound",
            "SubnetSelector did not match any Subnets",
        ),
        (
            {"securityGroupSelectorTerms": [{"tags": {"no": "such"}}]},
            "SecurityGroupsReady",
            "SecurityGroupsNotFound",
            "SecurityGroupSelector did not match any SecurityGroups",
        ),
    ],
)
async def test_what_a_class_misses_is_copied_into_its_pools(cluster: Cluster, spec, kind, reason, message):
    await cluster.apply(node_class("broken", **spec), node_pool("broken", class_name="broken"))

    async def told():
        return condition(await cluster.kube.get("EC2NodeClass", "broken"), kind).get("status") == "False"

    await cluster.until(told, lambda: cluster.kube.get("EC2NodeClass", "broken"))
    shown = await _shown(cluster, "EC2NodeClass", "broken", kind, "ValidationSucceeded", "Ready")
    assert shown[kind] == ("False", reason, message)
    assert shown["ValidationSucceeded"][1] == "DependenciesNotReady"
    assert shown["Ready"][0] == "False"

    async def copied():
        pool = await cluster.kube.get("NodePool", "broken")
        ready = condition(await cluster.kube.get("EC2NodeClass", "broken"), "Ready")
        found = condition(pool, "NodeClassReady")
        return found.get("reason") == ready["reason"] and found["message"] == ready["message"]

    await cluster.until(copied, lambda: cluster.kube.get("NodePool", "broken"))
    await cluster.kube.delete("NodePool", "broken")
    await cluster.kube.delete("EC2NodeClass", "broken")
    await cluster.gone("EC2NodeClass", "broken")


async def test_a_pool_without_its_class(cluster: Cluster):
    await cluster.apply(node_pool("orphan", class_name="nope"))
    shown = await _shown(cluster, "NodePool", "orphan", "NodeClassReady", "Ready", "ValidationSucceeded")
    assert shown["NodeClassReady"] == ("False", "NodeClassNotFound", "NodeClass not found on cluster")
    assert shown["Ready"] == ("False", "UnhealthyDependents", "NodeClassReady=False")
    assert shown["ValidationSucceeded"][0] == "True"
    found = await cluster.kube.get("NodePool", "orphan")
    assert not found["metadata"].get("finalizers")
    assert found["metadata"]["annotations"]["karpenter.sh/nodepool-hash-version"] == "v3"
    await cluster.kube.delete("NodePool", "orphan")
    await cluster.gone("NodePool", "orphan")


async def test_a_pool_that_passes_the_schema_and_is_wrong(cluster: Cluster):
    taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    await cluster.apply(node_pool("twice", taints=[taint | {"value": "a"}, taint | {"value": "b"}]))
    shown = await _shown(cluster, "NodePool", "twice", "ValidationSucceeded")
    text = "duplicate taint Key/Effect pair nvidia.com/gpu=NoSchedule"
    assert shown["ValidationSucceeded"] == ("False", "NodePoolValidationFailed", text)
    await cluster.kube.delete("NodePool", "twice")


async def test_a_pool_of_another_provider_gets_no_status(cluster: Cluster):
    foreign = {"group": "other.example", "kind": "OtherNodeClass", "name": "x"}
    await cluster.apply(node_pool("foreign", nodeClassRef=foreign))
    await cluster.apply(node_pool("witness"))
    await _shown(cluster, "NodePool", "witness", "Ready")
    assert not (await cluster.kube.get("NodePool", "foreign")).get("status")
    await cluster.kube.delete("NodePool", "foreign")
    await cluster.kube.delete("NodePool", "witness")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"requirements": [{"key": "karpenter.sh/foo", "operator": "Exists"}]},
            'label domain "karpenter.sh" is restricted',
        ),
        (
            {"requirements": [{"key": "a", "operator": "In", "values": []}]},
            "requirements with operator 'In' must have a value defined",
        ),
        (
            {"requirements": [{"key": "a", "operator": "In", "values": ["x"], "minValues": 2}]},
            "requirements with 'minValues' must have at least that many values specified in the 'values' field",
        ),
        ({"expireAfter": "1d"}, "expireAfter"),
    ],
)
async def test_what_the_schema_refuses(cluster: Cluster, change, text):
    with pytest.raises(ApiError) as error:
        await cluster.kube.create(node_pool("bad", **change))
    assert error.value.code == 422
    assert text in error.value.message


# --- from a pending pod to an initialized node ---


async def test_from_pod_to_node_and_back(cluster: Cluster):
    pool = node_pool("life", labels={"nvidia.com/device-plugin.config": "four"}, terminationGracePeriod="10m")
    await _ready_pool(cluster, pool)
    await cluster.apply(_pod("first", "life"))
    claim = (await _claims(cluster, "life", 1))[0]
    name = claim["metadata"]["name"]
    assert await cluster.event("first", "Nominated") == f"Pod should schedule on: nodeclaim/{name}"
    requests = claim["spec"]["resources"]["requests"]
    assert requests["nvidia.com/gpu"] == "1"
    assert int(requests["pods"]) == 2, "the device plugin's DaemonSet counts"
    assert claim["metadata"]["annotations"]["karpenter.sh/nodepool-hash-version"] == "v3"

    reasons: list[str] = []

    async def initialized():
        found = await cluster.kube.get("NodeClaim", name)
        shown = condition(found, "Initialized")
        if shown and (not reasons or reasons[-1] != shown["reason"]):
            reasons.append(shown["reason"])
        return found if is_true(found, "Initialized") else None

    claim = await cluster.until(initialized, lambda: cluster.kube.list("Pod"))
    order = [
        "AwaitingReconciliation",
        "NodeNotReady",
        "KnownEphemeralTaintsExist",
        "ResourceNotRegistered",
        "Initialized",
    ]
    assert reasons == [each for each in order if each in reasons]
    assert "ResourceNotRegistered" in reasons
    assert is_true(claim, "Ready")
    assert claim["metadata"]["labels"]["topology.kubernetes.io/zone"]
    node = await cluster.kube.get("Node", claim["status"]["nodeName"])
    assert node["metadata"]["labels"]["karpenter.sh/initialized"] == "true"
    assert node["metadata"]["labels"]["karpenter.sh/registered"] == "true"
    assert node["metadata"]["finalizers"] == ["karpenter.sh/termination"]
    assert [taint["key"] for taint in node["spec"]["taints"]] == ["nvidia.com/gpu"]
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "4"
    await cluster.pod_phase("first", "Running")
    instance = next(each for each in await cluster.instances("running") if name in str(each["Tags"]))
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags["karpenter.sh/nodepool"] == "life"
    assert claim["status"]["providerID"].endswith(instance["InstanceId"])

    async def counted():
        status = (await cluster.kube.get("NodePool", "life"))["status"]
        healthy = condition({"status": status}, "NodeRegistrationHealthy").get("status") == "True"
        return healthy and status.get("nodes") == 1 and status["resources"]["nodes"] == "1"

    await cluster.until(counted, lambda: cluster.kube.get("NodePool", "life"))

    # The plugin goes away: nothing is taken back.
    await cluster.kube.patch(
        "Node", node["metadata"]["name"], {"metadata": {"labels": {"nvidia.com/gpu.present": None}}}
    )
    await cluster.allocatable(node["metadata"]["name"], "0")
    assert is_true(await cluster.kube.get("NodeClaim", name), "Ready")
    await cluster.kube.patch(
        "Node", node["metadata"]["name"], {"metadata": {"labels": {"nvidia.com/gpu.present": "true"}}}
    )

    # Deletion: only the timestamp tells; then everything is gone, and a successor comes for the evicted pod's owner.
    await cluster.kube.delete("NodeClaim", name)

    async def draining():
        found = await cluster.kube.find("NodeClaim", name)
        return found if found is None or condition(found, "Drained") else None

    found = await cluster.until(draining)
    assert found is None or is_true(found, "Ready")
    await cluster.gone("NodeClaim", name)
    await cluster.gone("Node", node["metadata"]["name"])
    assert not [each for each in await cluster.instances("running", "pending") if name in str(each["Tags"])]
    assert await cluster.event("first", "Evicted") == "Evicted pod: Forceful Termination"
    await _remove(cluster, "life", "first")


async def test_pods_that_no_pool_can_serve_are_told_why(cluster: Cluster):
    await _ready_pool(cluster, node_pool("why"))
    await _ready_pool(cluster, node_pool("capped", limits={"nodes": "0"}))
    await cluster.apply(gpu_pod("intolerant", tolerations=[]), _pod("limited", "capped"))
    text = "did not tolerate taint (taint=nvidia.com/gpu=true:NoSchedule)"
    assert text in await cluster.event("intolerant", "FailedScheduling", "Failed to schedule pod, ")
    text = "node limits have been exhausted for nodepool (NodePool=capped)"
    assert text in await cluster.event("limited", "FailedScheduling", "Failed to schedule pod, ")
    assert not await cluster.claims()
    await _remove(cluster, "why", "intolerant", "limited")
    await _remove(cluster, "capped")


async def test_pods_the_scheduler_has_not_given_up_on_are_left_alone(cluster: Cluster):
    await _ready_pool(cluster, node_pool("gated"))
    pod = _pod("gated", "gated", schedulerName="somebody-else")
    await cluster.apply(pod)
    await cluster.clock.sleep(15)
    assert not await _claims(cluster, "gated")
    await _remove(cluster, "gated", "gated")


async def test_a_pinned_pod_buys_nothing(cluster: Cluster):
    await _ready_pool(cluster, node_pool("pinned"))
    await cluster.apply(gpu_pod("pinned", image=PAUSE, nodeSelector={"kubernetes.io/hostname": "ip-10-9-9-9"}))
    assert "key kubernetes.io/hostname" in await cluster.event("pinned", "FailedScheduling", "Failed to schedule pod")
    assert not await _claims(cluster, "pinned")
    await _remove(cluster, "pinned", "pinned")


async def test_eight_sharers_get_eight_nodes_and_the_empty_ones_go(cluster: Cluster):
    """Without a NodeOverlay Karpenter counts physical GPUs, then consolidates what nobody uses."""
    disruption = {
        "consolidationPolicy": "WhenEmpty",
        "consolidateAfter": "30s",
        "budgets": [{"nodes": "100%"}],
    }
    pool = node_pool("eight", labels={"nvidia.com/device-plugin.config": "four"}, disruption=disruption)
    await _ready_pool(cluster, pool)
    pods = [f"sharer-{number}" for number in range(8)]
    await cluster.apply(*(_pod(each, "eight") for each in pods))
    await _claims(cluster, "eight", 8)
    for each in pods:
        await cluster.pod_phase(each, "Running")

    async def settled():
        found = await _claims(cluster, "eight")
        used = {(await cluster.pod(each))["spec"]["nodeName"] for each in pods}
        return len(found) == len(used) < 8

    await cluster.until(settled, cluster.claims)
    await _remove(cluster, "eight", *pods)


async def test_no_capacity_in_one_type_takes_the_other(cluster: Cluster):
    cluster.settings.faults.set("insufficient-capacity", {"instanceType": "g5.xlarge"})
    try:
        await _ready_pool(cluster, node_pool("ice", "g5.xlarge", "g5.2xlarge"))
        await cluster.apply(_pod("ice", "ice"))
        claim = (await _claims(cluster, "ice", 1, "Launched"))[0]
        assert claim["metadata"]["labels"]["node.kubernetes.io/instance-type"] == "g5.2xlarge"
    finally:
        cluster.settings.faults.clear("insufficient-capacity")
    await _remove(cluster, "ice", "ice")


async def test_no_capacity_at_all_deletes_the_claim_with_an_event(cluster: Cluster):
    cluster.settings.faults.set("insufficient-capacity", {"instanceType": "g4dn.xlarge"})
    try:
        await _ready_pool(cluster, node_pool("none", "g4dn.xlarge"))
        await cluster.apply(_pod("none", "none"))

        async def told():
            found = await cluster.kube.list("Event", field_selector="reason=InsufficientCapacityError")
            return [each["message"] for each in found if "g4dn.xlarge" in each["message"]]

        messages = await cluster.until(told)
        assert "InsufficientInstanceCapacity" in messages[0]
        text = "no instance type has the required offering"
        assert text in await cluster.event("none", "FailedScheduling", text)
    finally:
        cluster.settings.faults.clear("insufficient-capacity")
    await _remove(cluster, "none", "none")


# --- protection and deadlines ---


async def test_a_budget_stalls_a_drain_until_the_grace_period_of_the_node(cluster: Cluster):
    await _ready_pool(cluster, node_pool("guarded", terminationGracePeriod="5m"))
    await cluster.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "guard", "namespace": "default"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}},
        },
        _pod("guarded", "guarded", labels={"app": "guarded"}),
    )
    await cluster.pod_phase("guarded", "Running")
    claim = (await _claims(cluster, "guarded", 1))[0]
    await cluster.kube.delete("NodeClaim", claim["metadata"]["name"])
    text = await cluster.event(claim["status"]["nodeName"], "FailedDraining")
    assert re.fullmatch(r"Failed to drain node, [12] pods are waiting to be evicted", text)
    await cluster.clock.sleep(30)
    found = await cluster.pod("guarded")
    assert not found["metadata"].get("deletionTimestamp")
    # Five minutes in the sandbox's time.
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    assert (await cluster.event("guarded", "Disrupted")).startswith(
        "Deleting the pod to accommodate the terminationTime"
    )
    await cluster.kube.delete("PodDisruptionBudget", "guard", "default")
    await _remove(cluster, "guarded", "guarded")


async def test_a_protected_pod_stalls_a_drain(cluster: Cluster):
    await _ready_pool(cluster, node_pool("protected"))
    pod = _pod("protected", "protected")
    pod["metadata"]["annotations"] = {"karpenter.sh/do-not-disrupt": "true"}
    await cluster.apply(pod)
    await cluster.pod_phase("protected", "Running")
    claim = (await _claims(cluster, "protected", 1))[0]
    await cluster.kube.delete("NodeClaim", claim["metadata"]["name"])
    await cluster.event(claim["status"]["nodeName"], "FailedDraining")
    await cluster.clock.sleep(30)
    assert not (await cluster.pod("protected"))["metadata"].get("deletionTimestamp")
    annotations = {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": None}}}
    await cluster.kube.patch("Pod", "protected", annotations, "default")
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await _remove(cluster, "protected", "protected")


async def test_daemon_pods_that_tolerate_everything_are_not_waited_for(cluster: Cluster):
    daemon = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "agent", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {
                "metadata": {"labels": {"app": "agent"}},
                "spec": {
                    "tolerations": [{"operator": "Exists"}],
                    "nodeSelector": {"karpenter.sh/nodepool": "agents"},
                    "containers": [{"name": "agent", "image": PAUSE}],
                },
            },
        },
    }
    await _ready_pool(cluster, node_pool("agents"))
    await cluster.apply(daemon, _pod("agents", "agents"))
    await cluster.pod_phase("agents", "Running")
    claim = (await _claims(cluster, "agents", 1, "Initialized"))[0]
    pods = await cluster.kube.list("Pod", "default", label_selector="app=agent")
    assert len(pods) == 1
    await cluster.kube.delete("NodeClaim", claim["metadata"]["name"])
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    assert await cluster.events(pods[0]["metadata"]["name"], "Evicted") == []
    await cluster.gone("Pod", pods[0]["metadata"]["name"], "default")
    await cluster.kube.delete("DaemonSet", "agent", "default")
    await _remove(cluster, "agents", "agents")


async def test_a_gpu_that_never_appears_keeps_its_node_for_ever(cluster: Cluster):
    cluster.settings.faults.set("gpu-never-registers", {"pool": "never"})
    try:
        disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "10s"}
        await _ready_pool(cluster, node_pool("never", disruption=disruption))
        await cluster.apply(_pod("never", "never"))
        claim = (await _claims(cluster, "never", 1, "Registered"))[0]
        name = claim["metadata"]["name"]

        async def stuck():
            found = await cluster.kube.get("NodeClaim", name)
            return condition(found, "Initialized").get("reason") == "ResourceNotRegistered"

        await cluster.until(stuck, lambda: cluster.kube.get("NodeClaim", name))
        await cluster.kube.delete("Pod", "never", "default", grace_seconds=0)
        assert await cluster.event(name, "DisruptionBlocked") == "Node isn't initialized"
        await cluster.clock.sleep(60)
        assert condition(await cluster.kube.get("NodeClaim", name), "Initialized")["reason"] == "ResourceNotRegistered"
    finally:
        cluster.settings.faults.clear("gpu-never-registers")
    await _remove(cluster, "never", "never")


async def test_drift_replaces_before_it_deletes(cluster: Cluster):
    await _ready_pool(cluster, node_pool("drift"))
    replicas = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "drift", "namespace": "default"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "drift"}},
            "template": {"metadata": {"labels": {"app": "drift"}}, "spec": _deployed("drift")},
        },
    }
    await cluster.apply(replicas)
    old = (await _claims(cluster, "drift", 1, "Initialized"))[0]
    name = old["metadata"]["name"]
    await cluster.kube.patch("NodePool", "drift", {"spec": {"template": {"metadata": {"labels": {"new": "label"}}}}})
    await cluster.until(_drifted(cluster, name), lambda: cluster.kube.get("NodeClaim", name))
    both = await _claims(cluster, "drift", 2)
    new = next(each["metadata"]["name"] for each in both if each["metadata"]["name"] != name)
    node = await cluster.kube.get("Node", old["status"]["nodeName"])
    assert "karpenter.sh/disrupted" in [taint["key"] for taint in node["spec"].get("taints") or []]

    async def replaced():
        if await cluster.kube.find("NodeClaim", name) is None:
            return is_true(await cluster.kube.get("NodeClaim", new), "Initialized")
        going = (await cluster.kube.get("NodeClaim", name))["metadata"].get("deletionTimestamp")
        assert not going or is_true(await cluster.kube.get("NodeClaim", new), "Initialized")
        return False

    await cluster.until(replaced, cluster.claims)
    await cluster.kube.delete("Deployment", "drift", "default")
    await _remove(cluster, "drift")


def _drifted(cluster: Cluster, name: str):
    async def look():
        found = await cluster.kube.find("NodeClaim", name)
        return found is None or condition(found, "Drifted").get("reason") == "NodePoolDrifted"

    return look


def _deployed(pool: str) -> Object:
    spec = _pod("x", pool)["spec"]
    return {key: value for key, value in spec.items() if key != "restartPolicy"}


async def test_a_node_whose_pods_fit_elsewhere_is_removed(cluster: Cluster):
    disruption = {
        "consolidationPolicy": "WhenEmptyOrUnderutilized",
        "consolidateAfter": "10s",
        "budgets": [{"nodes": "1"}],
    }
    await _ready_pool(cluster, node_pool("pack", "m5.large", disruption=disruption))
    spec = _deployed("pack") | {"terminationGracePeriodSeconds": 1}
    spec["containers"][0]["resources"] = {"requests": {"cpu": "900m"}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "pack", "namespace": "default"},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "pack"}},
            "template": {"metadata": {"labels": {"app": "pack"}}, "spec": spec},
        },
    }
    await cluster.apply(deployment)
    await _claims(cluster, "pack", 2, "Initialized")

    async def running(count: int):
        pods = await cluster.kube.list("Pod", "default", label_selector="app=pack")
        up = [
            each
            for each in pods
            if each["status"].get("phase") == "Running" and not each["metadata"].get("deletionTimestamp")
        ]
        return len(up) == count and len(pods) == count

    await cluster.until(lambda: running(3))
    await cluster.kube.patch("Deployment", "pack", {"spec": {"replicas": 2}}, "default")
    await _claims(cluster, "pack", 1, "Initialized")
    await cluster.until(lambda: running(2))
    await cluster.kube.delete("Deployment", "pack", "default")
    await _remove(cluster, "pack")


async def test_a_budget_of_zero_keeps_an_empty_node(cluster: Cluster):
    disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "30s", "budgets": [{"nodes": "0"}]}
    await _ready_pool(cluster, node_pool("budget", disruption=disruption))
    await cluster.apply(_pod("budget", "budget"))
    claim = (await _claims(cluster, "budget", 1, "Initialized"))[0]
    await cluster.kube.delete("Pod", "budget", "default")
    text = "No allowed disruptions for disruption reason Empty due to blocking budget"
    assert await cluster.event("budget", "DisruptionBlocked", "Empty") == text
    await cluster.clock.sleep(60)
    assert not (await cluster.kube.get("NodeClaim", claim["metadata"]["name"]))["metadata"].get("deletionTimestamp")
    await _remove(cluster, "budget")


async def test_an_interruption_deletes_the_claim(cluster: Cluster):
    await _ready_pool(cluster, node_pool("spot"))
    await cluster.apply(_pod("spot", "spot"))
    claim = (await _claims(cluster, "spot", 1, "Initialized"))[0]
    instance = claim["status"]["providerID"].rsplit("/", 1)[1]
    body = message(Kind.SPOT, instance, "us-west-2a", cluster.settings, datetime.now(UTC))
    url = (await cluster.aws.call("sqs", "get_queue_url", QueueName="demo-gpu"))["QueueUrl"]
    await cluster.aws.call("sqs", "send_message", QueueUrl=url, MessageBody=json.dumps(body))
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    assert "Spot interruption warning was triggered" in await cluster.events(
        claim["metadata"]["name"], "SpotInterrupted"
    )
    await _remove(cluster, "spot", "spot")


# --- faults ---


async def test_an_extra_node_is_bought_once(cluster: Cluster):
    cluster.settings.faults.set("extra-node", count=1)
    await _ready_pool(cluster, node_pool("extra"))
    await cluster.apply(_pod("extra", "extra"))
    await _claims(cluster, "extra", 2)
    await _remove(cluster, "extra", "extra")


async def test_a_leaked_instance_stays_when_its_claim_is_gone(cluster: Cluster):
    await _ready_pool(cluster, node_pool("leak"))
    await cluster.apply(_pod("leak", "leak"))
    claim = (await _claims(cluster, "leak", 1, "Initialized"))[0]
    cluster.settings.faults.set("leak-instance", count=1)
    await _remove(cluster, "leak", "leak")
    instance = claim["status"]["providerID"].rsplit("/", 1)[1]
    assert instance in {each["InstanceId"] for each in await cluster.instances("running")}
    await cluster.terminate(instance)


# --- without the controller ---


async def test_stopped_it_leaves_everything_and_started_again_it_cleans_up(cluster: Cluster):
    await _ready_pool(cluster, node_pool("stopped"))
    await cluster.apply(_pod("stopped", "stopped"))
    claim = (await _claims(cluster, "stopped", 1, "Initialized"))[0]
    await cluster.kube.patch("Deployment", "karpenter", {"spec": {"replicas": 0}}, "kube-system")

    async def pods():
        return await cluster.kube.list("Pod", "kube-system", label_selector="app.kubernetes.io/name=karpenter")

    await cluster.until(lambda: _empty(pods))
    await cluster.kube.delete("NodePool", "stopped")
    await cluster.gone("NodePool", "stopped")

    async def hangs():
        found = await cluster.kube.find("NodeClaim", claim["metadata"]["name"])
        return found is not None and found["metadata"].get("deletionTimestamp")

    await cluster.until(hangs, cluster.claims)
    await asyncio.sleep(0.5)
    assert await cluster.kube.find("NodeClaim", claim["metadata"]["name"]) is not None
    assert await cluster.kube.find("Node", claim["status"]["nodeName"]) is not None
    assert (await cluster.pod("stopped"))["status"]["phase"] == "Running"
    await cluster.kube.patch("Deployment", "karpenter", {"spec": {"replicas": 1}}, "kube-system")
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await cluster.gone("Node", claim["status"]["nodeName"])
    await cluster.kube.delete("Pod", "stopped", "default", grace_seconds=0)


async def _empty(look) -> bool:
    return not await look()


async def test_the_class_goes_last_and_takes_its_profile_along(cluster: Cluster):
    found = await cluster.kube.get("EC2NodeClass", "gpu")
    await cluster.kube.delete("EC2NodeClass", "gpu")
    await cluster.gone("EC2NodeClass", "gpu")
    profiles = (await cluster.aws.call("iam", "list_instance_profiles"))["InstanceProfiles"]
    assert found["status"]["instanceProfile"] not in {each["InstanceProfileName"] for each in profiles}
