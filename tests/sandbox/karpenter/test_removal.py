"""How nodes go: drains, drift, consolidation, interruption, faults, and a Karpenter that is stopped."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime

import pytest

from sandbox.aws.notices import Kind, message
from sandbox.karpenter.conditions import condition, is_true
from tests.sandbox.karpenter.talk import PAUSE, claims, deployed, pool_pod, ready_pool, remove
from tests.sandbox.nodes.cluster import Cluster, node_pool

pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- protection and deadlines ---


async def test_a_budget_stalls_a_drain_until_the_grace_period_of_the_node(cluster: Cluster):
    await ready_pool(cluster, node_pool("guarded", terminationGracePeriod="5m"))
    await cluster.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "guard", "namespace": "default"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}},
        },
        pool_pod("guarded", "guarded", labels={"app": "guarded"}),
    )
    await cluster.pod_phase("guarded", "Running")
    claim = (await claims(cluster, "guarded", 1))[0]
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
    await remove(cluster, "guarded", "guarded")


async def test_a_protected_pod_stalls_a_drain(cluster: Cluster):
    await ready_pool(cluster, node_pool("protected"))
    pod = pool_pod("protected", "protected")
    pod["metadata"]["annotations"] = {"karpenter.sh/do-not-disrupt": "true"}
    await cluster.apply(pod)
    await cluster.pod_phase("protected", "Running")
    claim = (await claims(cluster, "protected", 1))[0]
    await cluster.kube.delete("NodeClaim", claim["metadata"]["name"])
    await cluster.event(claim["status"]["nodeName"], "FailedDraining")
    await cluster.clock.sleep(30)
    assert not (await cluster.pod("protected"))["metadata"].get("deletionTimestamp")
    annotations = {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": None}}}
    await cluster.kube.patch("Pod", "protected", annotations, "default")
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await remove(cluster, "protected", "protected")


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
    await ready_pool(cluster, node_pool("agents"))
    await cluster.apply(daemon, pool_pod("agents", "agents"))
    await cluster.pod_phase("agents", "Running")
    claim = (await claims(cluster, "agents", 1, "Initialized"))[0]
    pods = await cluster.kube.list("Pod", "default", label_selector="app=agent")
    assert len(pods) == 1
    await cluster.kube.delete("NodeClaim", claim["metadata"]["name"])
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    assert await cluster.events(pods[0]["metadata"]["name"], "Evicted") == []
    await cluster.gone("Pod", pods[0]["metadata"]["name"], "default")
    await cluster.kube.delete("DaemonSet", "agent", "default")
    await remove(cluster, "agents", "agents")


async def test_a_gpu_that_never_appears_keeps_its_node_for_ever(cluster: Cluster):
    cluster.settings.faults.set("gpu-never-registers", {"pool": "never"})
    try:
        disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "10s"}
        await ready_pool(cluster, node_pool("never", disruption=disruption))
        await cluster.apply(pool_pod("never", "never"))
        claim = (await claims(cluster, "never", 1, "Registered"))[0]
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
    await remove(cluster, "never", "never")


async def test_drift_replaces_before_it_deletes(cluster: Cluster):
    await ready_pool(cluster, node_pool("drift"))
    replicas = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "drift", "namespace": "default"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "drift"}},
            "template": {"metadata": {"labels": {"app": "drift"}}, "spec": deployed("drift")},
        },
    }
    await cluster.apply(replicas)
    old = (await claims(cluster, "drift", 1, "Initialized"))[0]
    name = old["metadata"]["name"]
    await cluster.kube.patch("NodePool", "drift", {"spec": {"template": {"metadata": {"labels": {"new": "label"}}}}})
    await cluster.until(_drifted(cluster, name), lambda: cluster.kube.get("NodeClaim", name))
    both = await claims(cluster, "drift", 2)
    new = next(each["metadata"]["name"] for each in both if each["metadata"]["name"] != name)
    node = await cluster.kube.get("Node", old["status"]["nodeName"])
    assert "karpenter.sh/disrupted" in [taint["key"] for taint in node["spec"].get("taints") or []]

    async def replaced():
        found = await cluster.kube.find("NodeClaim", name)
        initialized = is_true(await cluster.kube.get("NodeClaim", new), "Initialized")
        going = found is None or found["metadata"].get("deletionTimestamp")
        assert initialized or not going
        return found is None

    await cluster.until(replaced, cluster.claims)
    await cluster.kube.delete("Deployment", "drift", "default")
    await remove(cluster, "drift")


def _drifted(cluster: Cluster, name: str):
    async def look():
        found = await cluster.kube.find("NodeClaim", name)
        return found is None or condition(found, "Drifted").get("reason") == "NodePoolDrifted"

    return look


async def test_a_node_whose_pods_fit_elsewhere_is_removed(cluster: Cluster):
    disruption = {
        "consolidationPolicy": "WhenEmptyOrUnderutilized",
        "consolidateAfter": "10s",
        "budgets": [{"nodes": "1"}],
    }
    await ready_pool(cluster, node_pool("pack", "m5.large", disruption=disruption))
    spec = deployed("pack") | {"terminationGracePeriodSeconds": 1}
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
    await claims(cluster, "pack", 2, "Initialized")

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
    await claims(cluster, "pack", 1, "Initialized")
    await cluster.until(lambda: running(2))
    await cluster.kube.delete("Deployment", "pack", "default")
    await remove(cluster, "pack")


async def test_a_budget_of_zero_keeps_an_empty_node(cluster: Cluster):
    disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "30s", "budgets": [{"nodes": "0"}]}
    await ready_pool(cluster, node_pool("budget", disruption=disruption))
    await cluster.apply(pool_pod("budget", "budget"))
    claim = (await claims(cluster, "budget", 1, "Initialized"))[0]
    await cluster.kube.delete("Pod", "budget", "default")
    text = "No allowed disruptions for disruption reason Empty due to blocking budget"
    assert await cluster.event("budget", "DisruptionBlocked", "Empty") == text
    await cluster.clock.sleep(60)
    assert not (await cluster.kube.get("NodeClaim", claim["metadata"]["name"]))["metadata"].get("deletionTimestamp")
    await remove(cluster, "budget")


async def _told(cluster: Cluster, *bodies: str) -> None:
    """Karpenter's queue gets these messages, and is empty again."""
    url = (await cluster.aws.call("sqs", "get_queue_url", QueueName="demo-gpu"))["QueueUrl"]
    for body in bodies:
        await cluster.aws.call("sqs", "send_message", QueueUrl=url, MessageBody=body)
    counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

    async def empty() -> bool:
        answer = await cluster.aws.call("sqs", "get_queue_attributes", QueueUrl=url, AttributeNames=counts)
        return all(answer["Attributes"][each] == "0" for each in counts)

    await cluster.until(empty)


def _message(cluster: Cluster, kind: Kind, instance: str) -> str:
    return json.dumps(message(kind, instance, "us-west-2a", cluster.settings, datetime.now(UTC)))


async def test_an_interruption_deletes_the_claim_once(cluster: Cluster):
    await ready_pool(cluster, node_pool("spot"))
    await cluster.apply(pool_pod("spot", "spot"))
    claim = (await claims(cluster, "spot", 1, "Initialized"))[0]
    instance = claim["status"]["providerID"].rsplit("/", 1)[1]
    await _told(cluster, *3 * [_message(cluster, Kind.SPOT, instance)])
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    said = {
        "SpotInterrupted": "Spot interruption warning was triggered",
        "TerminatingOnInterruption": "Interruption triggered termination for the NodeClaim",
    }
    for reason, text in said.items():
        assert await cluster.events(claim["metadata"]["name"], reason) == [text]
    text = "Interruption triggered termination for the Node"
    assert await cluster.events(claim["status"]["nodeName"], "TerminatingOnInterruption") == [text]
    await remove(cluster, "spot", "spot")


async def test_what_is_no_interruption_of_its_instances_is_deleted_and_leaves_the_claim(cluster: Cluster):
    await ready_pool(cluster, node_pool("calm"))
    await cluster.apply(pool_pod("calm", "calm"))
    claim = (await claims(cluster, "calm", 1, "Initialized"))[0]
    instance = claim["status"]["providerID"].rsplit("/", 1)[1]
    strange = "i-0123456789abcdef0"
    await _told(
        cluster,
        _message(cluster, Kind.REBALANCE, instance),
        _message(cluster, Kind.SPOT, strange),
        _message(cluster, Kind.SPOT, instance)[:-4],
        "[]",
        json.dumps({"detail-type": "EC2 Spot Instance Interruption Warning", "detail": {"instance-id": instance}}),
    )
    text = "Spot rebalance recommendation was triggered"
    assert await cluster.event(claim["metadata"]["name"], "SpotRebalanceRecommendation") == text
    assert not (await cluster.kube.get("NodeClaim", claim["metadata"]["name"]))["metadata"].get("deletionTimestamp")
    await remove(cluster, "calm", "calm")


async def test_an_interruption_does_not_overrule_a_budget(cluster: Cluster):
    await ready_pool(cluster, node_pool("stubborn"))
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget"}
    selector = {"matchLabels": {"app": "stubborn"}}
    await cluster.apply(
        budget
        | {"metadata": {"name": "stubborn", "namespace": "default"}}
        | {"spec": {"maxUnavailable": 0, "selector": selector}},
        pool_pod("stubborn", "stubborn", labels={"app": "stubborn"}),
    )
    await cluster.pod_phase("stubborn", "Running")
    claim = (await claims(cluster, "stubborn", 1))[0]
    instance = claim["status"]["providerID"].rsplit("/", 1)[1]
    await _told(cluster, _message(cluster, Kind.SPOT, instance))
    await cluster.event(claim["status"]["nodeName"], "FailedDraining")
    await cluster.clock.sleep(150)  # a real spot instance is gone after 120
    found = await cluster.pod("stubborn")
    assert not found["metadata"].get("deletionTimestamp")
    # Only the end of the hardware ends it.
    await cluster.terminate(instance)
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await cluster.kube.delete("PodDisruptionBudget", "stubborn", "default")
    await remove(cluster, "stubborn")


# --- faults ---


async def test_an_extra_node_is_bought_once(cluster: Cluster):
    cluster.settings.faults.set("extra-node", count=1)
    await ready_pool(cluster, node_pool("extra"))
    await cluster.apply(pool_pod("extra", "extra"))
    await claims(cluster, "extra", 2)
    await remove(cluster, "extra", "extra")


async def test_a_leaked_instance_stays_when_its_claim_is_gone(cluster: Cluster):
    await ready_pool(cluster, node_pool("leak"))
    await cluster.apply(pool_pod("leak", "leak"))
    claim = (await claims(cluster, "leak", 1, "Initialized"))[0]
    cluster.settings.faults.set("leak-instance", count=1)
    await remove(cluster, "leak", "leak")
    instance = claim["status"]["providerID"].rsplit("/", 1)[1]
    assert instance in {each["InstanceId"] for each in await cluster.instances("running")}
    await cluster.terminate(instance)


# --- without the controller ---


async def test_stopped_it_leaves_everything_and_started_again_it_cleans_up(cluster: Cluster):
    await ready_pool(cluster, node_pool("stopped"))
    await cluster.apply(pool_pod("stopped", "stopped"))
    claim = (await claims(cluster, "stopped", 1, "Initialized"))[0]
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


async def test_the_class_goes_last_and_takes_its_profile_and_launch_templates_along(cluster: Cluster):
    found = await cluster.kube.get("EC2NodeClass", "gpu")
    # The tags that Karpenter itself looks for when it deletes them.
    of_cluster = {"Name": "tag:eks:eks-cluster-name", "Values": [cluster.settings.cluster_name]}
    of_class = {"Name": "tag:karpenter.k8s.aws/ec2nodeclass", "Values": ["gpu"]}

    async def templates():
        filters = [of_cluster, of_class]
        return await cluster.aws.paginate("ec2", "describe_launch_templates", "LaunchTemplates[]", Filters=filters)

    assert await templates()
    await cluster.kube.delete("EC2NodeClass", "gpu")
    await cluster.gone("EC2NodeClass", "gpu")
    profiles = (await cluster.aws.call("iam", "list_instance_profiles"))["InstanceProfiles"]
    assert found["status"]["instanceProfile"] not in {each["InstanceProfileName"] for each in profiles}
    assert not await templates()
