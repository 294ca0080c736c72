"""Classes, pools, and the way from a pending pod to an initialized node, in a whole simulated cluster."""

from __future__ import annotations

import time

import pytest

from sandbox.karpenter.conditions import condition, is_true
from sandbox.kube.resources import ApiError
from tests.sandbox.karpenter.talk import PAUSE, claims, conditions_of, pool_pod, ready_pool, remove
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, node_class, node_pool

pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- classes and pools ---


async def test_a_class_finds_its_images_network_and_profile(cluster: Cluster):
    types = ("AMIsReady", "SubnetsReady", "SecurityGroupsReady", "InstanceProfileReady", "ValidationSucceeded", "Ready")

    async def ready():
        return is_true(await cluster.kube.get("EC2NodeClass", "gpu"), "Ready")

    await cluster.until(ready, lambda: cluster.kube.get("EC2NodeClass", "gpu"))
    shown = await conditions_of(cluster, "EC2NodeClass", "gpu", *types)
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
    shown = await conditions_of(cluster, "EC2NodeClass", "broken", kind, "ValidationSucceeded", "Ready")
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
    shown = await conditions_of(cluster, "NodePool", "orphan", "NodeClassReady", "Ready", "ValidationSucceeded")
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
    shown = await conditions_of(cluster, "NodePool", "twice", "ValidationSucceeded")
    text = "duplicate taint Key/Effect pair nvidia.com/gpu=NoSchedule"
    assert shown["ValidationSucceeded"] == ("False", "NodePoolValidationFailed", text)
    await cluster.kube.delete("NodePool", "twice")


async def test_a_pool_of_another_provider_gets_no_status(cluster: Cluster):
    foreign = {"group": "other.example", "kind": "OtherNodeClass", "name": "x"}
    await cluster.apply(node_pool("foreign", nodeClassRef=foreign))
    await cluster.apply(node_pool("witness"))
    await conditions_of(cluster, "NodePool", "witness", "Ready")
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
    await ready_pool(cluster, pool)
    await cluster.apply(pool_pod("first", "life"))
    claim = (await claims(cluster, "life", 1))[0]
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
    assert [device["DeviceName"] for device in instance["BlockDeviceMappings"]] == ["/dev/xvda"]

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
    await remove(cluster, "life", "first")


async def test_pods_that_no_pool_can_serve_are_told_why(cluster: Cluster):
    await ready_pool(cluster, node_pool("why"))
    await ready_pool(cluster, node_pool("capped", limits={"nodes": "0"}))
    await cluster.apply(gpu_pod("intolerant", tolerations=[]), pool_pod("limited", "capped"))
    text = "did not tolerate taint (taint=nvidia.com/gpu=true:NoSchedule)"
    assert text in await cluster.event("intolerant", "FailedScheduling", "Failed to schedule pod, ")
    text = "node limits have been exhausted for nodepool (NodePool=capped)"
    assert text in await cluster.event("limited", "FailedScheduling", "Failed to schedule pod, ")
    assert not await cluster.claims()
    await remove(cluster, "why", "intolerant", "limited")
    await remove(cluster, "capped")


async def test_pods_the_scheduler_has_not_given_up_on_are_left_alone(cluster: Cluster):
    await ready_pool(cluster, node_pool("gated"))
    pod = pool_pod("gated", "gated", schedulerName="somebody-else")
    await cluster.apply(pod)
    await cluster.clock.sleep(15)
    assert not await claims(cluster, "gated")
    await remove(cluster, "gated", "gated")


async def test_a_pinned_pod_buys_nothing(cluster: Cluster):
    await ready_pool(cluster, node_pool("pinned"))
    await cluster.apply(gpu_pod("pinned", image=PAUSE, nodeSelector={"kubernetes.io/hostname": "ip-10-9-9-9"}))
    text = "using label kubernetes.io/hostname is not allowed"
    assert text in await cluster.event("pinned", "FailedScheduling", "Failed to schedule pod")
    assert not await claims(cluster, "pinned")
    await remove(cluster, "pinned", "pinned")


async def test_a_pod_that_keeps_away_from_a_node_by_host_name_is_ignored_and_by_a_label_is_served(cluster: Cluster):
    """Karpenter refuses the host name's key whatever the operator; of a label that no pool defines it takes
    DoesNotExist."""
    await ready_pool(cluster, node_pool("away"))
    await cluster.apply(pool_pod("first", "away"))
    await cluster.pod_phase("first", "Running")
    standing = (await cluster.pod("first"))["spec"]["nodeName"]

    def away(name: str, key: str, operator: str, *values: str):
        expression = {"key": key, "operator": operator} | ({"values": list(values)} if values else {})
        term = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
        return pool_pod(
            name, "away", affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
        )

    await cluster.apply(away("by-name", "kubernetes.io/hostname", "NotIn", standing))
    text = await cluster.event("by-name", "FailedScheduling", "Failed to schedule pod")
    assert text.startswith("Failed to schedule pod, using label kubernetes.io/hostname is not allowed as it might ")
    await cluster.clock.sleep(15)
    assert len(await claims(cluster, "away")) == 1
    await cluster.kube.delete("Pod", "by-name", "default", grace_seconds=0)

    # The node stands idle; the label alone makes the next pod need another.
    await cluster.kube.patch("Node", standing, {"metadata": {"labels": {"gpu-fleet.io/standing": "true"}}})
    await cluster.kube.delete("Pod", "first", "default", grace_seconds=0)
    await cluster.apply(away("by-label", "gpu-fleet.io/standing", "DoesNotExist"))
    await cluster.pod_phase("by-label", "Running")
    node = (await cluster.pod("by-label"))["spec"]["nodeName"]
    assert node != standing
    assert "gpu-fleet.io/standing" not in (await cluster.kube.get("Node", node))["metadata"]["labels"]
    await remove(cluster, "away", "by-label")


async def test_eight_sharers_get_eight_nodes_and_the_empty_ones_go(cluster: Cluster):
    """Without a NodeOverlay Karpenter counts physical GPUs, then consolidates what nobody uses."""
    disruption = {
        "consolidationPolicy": "WhenEmpty",
        "consolidateAfter": "30s",
        "budgets": [{"nodes": "100%"}],
    }
    pool = node_pool("eight", labels={"nvidia.com/device-plugin.config": "four"}, disruption=disruption)
    await ready_pool(cluster, pool)
    pods = [f"sharer-{number}" for number in range(8)]
    await cluster.apply(*(pool_pod(each, "eight") for each in pods))
    await claims(cluster, "eight", 8)
    for each in pods:
        await cluster.pod_phase(each, "Running")

    async def settled():
        found = await claims(cluster, "eight")
        used = {(await cluster.pod(each))["spec"]["nodeName"] for each in pods}
        return len(found) == len(used) < 8

    await cluster.until(settled, cluster.claims)
    await remove(cluster, "eight", *pods)


async def test_no_capacity_in_one_type_takes_the_other(cluster: Cluster):
    cluster.settings.faults.set("insufficient-capacity", {"instanceType": "g5.xlarge"})
    try:
        await ready_pool(cluster, node_pool("ice", "g5.xlarge", "g5.2xlarge"))
        await cluster.apply(pool_pod("ice", "ice"))
        claim = (await claims(cluster, "ice", 1, "Launched"))[0]
        assert claim["metadata"]["labels"]["node.kubernetes.io/instance-type"] == "g5.2xlarge"
    finally:
        cluster.settings.faults.clear("insufficient-capacity")
    await remove(cluster, "ice", "ice")


async def test_no_capacity_at_all_deletes_the_claim_with_an_event(cluster: Cluster):
    cluster.settings.faults.set("insufficient-capacity", {"instanceType": "g4dn.xlarge"})
    try:
        await ready_pool(cluster, node_pool("none", "g4dn.xlarge"))
        await cluster.apply(pool_pod("none", "none"))

        async def told():
            found = await cluster.kube.list("Event", field_selector="reason=InsufficientCapacityError")
            return [each["message"] for each in found if "g4dn.xlarge" in each["message"]]

        messages = await cluster.until(told)
        assert "InsufficientInstanceCapacity" in messages[0]
        text = "no instance type has the required offering"
        assert text in await cluster.event("none", "FailedScheduling", text)
    finally:
        cluster.settings.faults.clear("insufficient-capacity")
    await remove(cluster, "none", "none")


async def test_karpenter_notices_better_weather_three_minutes_after_a_refusal(cluster: Cluster):
    """aws/karpenter-provider-aws at 1d92708 ``pkg/cache/cache.go``, ``UnavailableOfferingsTTL``: until then it asks EC2
    for nothing that was refused, and then it asks again by itself."""
    refused = "InsufficientCapacityError"

    async def asked():
        found = await cluster.kube.list("Event", field_selector=f"reason={refused}")
        return [each for each in found if each["involvedObject"]["name"].startswith("weather-")]

    cluster.settings.faults.set("weather", {"instanceType": "g5.xlarge"})
    try:
        await ready_pool(cluster, node_pool("weather", "g5.xlarge"))
        await cluster.apply(pool_pod("weather", "weather"))
        await cluster.until(asked)
        cluster.settings.faults.clear("weather")
        began = time.monotonic()
        claim = (await claims(cluster, "weather", 1, "Launched"))[0]
        waited = (time.monotonic() - began) * cluster.settings.speed
        assert waited >= 100, f"asked again after {waited:.0f} simulated seconds"
        assert claim["metadata"]["labels"]["node.kubernetes.io/instance-type"] == "g5.xlarge"
        assert len(await asked()) <= 2, "one for each capacity type"
    finally:
        cluster.settings.faults.clear("weather")
    await remove(cluster, "weather", "weather")
