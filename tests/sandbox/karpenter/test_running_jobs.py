"""What drift and age do to nodes on which jobs run.

Sources: kubernetes-sigs/karpenter v1.14.1 (``core``) and aws/karpenter-provider-aws v1.14.1 (``aws``).
"""

from __future__ import annotations

import asyncio

import pytest

from sandbox.karpenter.conditions import condition
from tests.sandbox.karpenter.talk import claims, pool_pod, ready_pool, remove
from tests.sandbox.nodes.cluster import Cluster, node_class, node_pool

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROTECTED = {"karpenter.sh/do-not-disrupt": "true"}
HELD = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "Never",
        "budgets": [{"nodes": "0", "reasons": ["Drifted"]}]}  # fmt: skip


def job(name: str, annotations: dict[str, str] | None = None, **spec):
    pod = pool_pod(name, name, labels={"app": name}, **spec)
    pod["metadata"]["annotations"] = PROTECTED if annotations is None else annotations
    return pod


def guard(name: str):
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": name}}},
    }


async def running(cluster: Cluster, pool, *objects) -> dict:
    """The NodeClaim on which the pool's job runs."""
    name = pool["metadata"]["name"]
    await ready_pool(cluster, pool)
    await cluster.apply(*objects)
    await cluster.pod_phase(name, "Running")
    return (await claims(cluster, name, 1, "Initialized"))[0]


async def drifted(cluster: Cluster, claim: dict, reason: str = "NodePoolDrifted") -> None:
    name = claim["metadata"]["name"]

    async def look():
        return condition(await cluster.kube.get("NodeClaim", name), "Drifted").get("reason") == reason

    await cluster.until(look, lambda: cluster.kube.get("NodeClaim", name))


async def relabel(cluster: Cluster, pool: str) -> None:
    await cluster.kube.patch("NodePool", pool, {"spec": {"template": {"metadata": {"labels": {"new": "label"}}}}})


async def lives(cluster: Cluster, name: str, seconds: float = 90.0) -> None:
    await cluster.clock.sleep(seconds)
    found = await cluster.pod(name)
    assert found is not None
    assert not found["metadata"].get("deletionTimestamp")
    assert found["status"]["phase"] == "Running"


@pytest.mark.parametrize(
    ("name", "annotations", "budget", "says"),
    [
        ("kept", PROTECTED, False, 'Pod has "karpenter.sh/do-not-disrupt" annotation (Pod=default/kept)'),
        ("hour", {"karpenter.sh/do-not-disrupt": "8760h"}, False, 'Pod has "karpenter.sh/do-not-disrupt" annotation'),
        ("bound", {}, True, "Pdb prevents pod evictions (PodDisruptionBudget=[default/bound])"),
    ],
)
async def test_without_a_period_a_drifted_node_with_a_protected_pod_is_no_candidate(
    cluster: Cluster, name, annotations, budget, says
):
    """core disruption/types.go NewCandidate; utils/pod/scheduling.go IsDoNotDisruptActive (also durations)."""
    claim = await running(cluster, node_pool(name), *([guard(name)] if budget else []), job(name, annotations))
    await relabel(cluster, name)
    await drifted(cluster, claim)
    await cluster.event(claim["metadata"]["name"], "DisruptionBlocked", says)
    await lives(cluster, name)
    assert len(await claims(cluster, name)) == 1
    if budget:
        await cluster.kube.delete("PodDisruptionBudget", name, "default")
    await remove(cluster, name, name)


async def test_a_protection_for_some_time_ends(cluster: Cluster):
    """core utils/pod/scheduling.go: the annotation's duration is counted from the pod's start."""
    claim = await running(cluster, node_pool("brief"), job("brief", {"karpenter.sh/do-not-disrupt": "30s"}))
    await relabel(cluster, "brief")
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await remove(cluster, "brief", "brief")


@pytest.mark.parametrize(("name", "annotations", "budget"), [("taken", PROTECTED, False), ("ended", {}, True)])
async def test_with_a_period_drift_replaces_the_node_and_its_end_deletes_protected_pods(
    cluster: Cluster, name, annotations, budget
):
    """core disruption/drift.go (class Eventual), types.go NewCandidate, terminator.go DeleteExpiringPods."""
    pool = node_pool(name, terminationGracePeriod="5m")
    claim = await running(cluster, pool, *([guard(name)] if budget else []), job(name, annotations))
    await relabel(cluster, name)
    await cluster.gone("Pod", name, "default")
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    assert "bypasses the PDB" in await cluster.event(name, "Disrupted")
    if budget:
        await cluster.kube.delete("PodDisruptionBudget", name, "default")
    await remove(cluster, name)


async def test_a_budget_of_zero_for_drift_keeps_nodes_although_a_period_is_set(cluster: Cluster):
    """core apis/v1/nodepool.go GetAllowedDisruptionsByReason."""
    claim = await running(cluster, node_pool("held", disruption=HELD, terminationGracePeriod="5m"), job("held", {}))
    await relabel(cluster, "held")
    await drifted(cluster, claim)
    text = "No allowed disruptions for disruption reason Drifted due to blocking budget"
    assert await cluster.event("held", "DisruptionBlocked") == text
    await lives(cluster, "held")
    await remove(cluster, "held", "held")


async def test_no_budget_for_drift_stops_a_node_from_growing_too_old_and_its_period_ends_a_protected_pod(
    cluster: Cluster,
):
    """core nodeclaim/expiration/controller.go deletes the claim; nothing replaces it first."""
    pool = node_pool("aged", disruption=HELD, expireAfter="15m", terminationGracePeriod="2m")
    claim = await running(cluster, pool, job("aged"))
    await cluster.gone("Pod", "aged", "default")
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await remove(cluster, "aged")


async def test_without_a_period_a_node_too_old_waits_for_its_protected_pod_tainted_and_paid_for(cluster: Cluster):
    """core terminator.go Drain waits for pods that it may not evict; the instance stays until then."""
    claim = await running(cluster, node_pool("worn", expireAfter="15m"), job("worn"))
    node = claim["status"]["nodeName"]

    async def tainted():
        taints = (await cluster.kube.get("Node", node))["spec"]["taints"]
        return "karpenter.sh/disrupted" in [taint["key"] for taint in taints]

    await cluster.until(tainted, lambda: cluster.kube.get("Node", node))
    await lives(cluster, "worn")
    assert await tainted()
    assert len(await cluster.instances("running")) == 1
    await cluster.kube.delete("Pod", "worn", "default", grace_seconds=0)
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await remove(cluster, "worn")


async def test_a_protected_pod_that_tolerates_every_taint_is_not_waited_for(cluster: Cluster):
    """core utils/pod/scheduling.go IsDrainable: so expiry ends it, annotated or not."""
    everything = [{"operator": "Exists"}]
    claim = await running(cluster, node_pool("stoic", expireAfter="15m"), job("stoic", tolerations=everything))
    await cluster.gone("NodeClaim", claim["metadata"]["name"])
    await cluster.gone("Pod", "stoic", "default")
    await remove(cluster, "stoic")


async def test_another_ami_drifts_nodes_and_so_does_a_control_plane_upgrade(cluster: Cluster):
    """aws cloudprovider/drift.go isAMIDrifted; amifamily/al2023.go resolves an alias by the cluster's version."""
    await cluster.apply(node_class("imaged"))
    pool = node_pool("imaged", disruption=HELD, class_name="imaged")
    claim = await running(cluster, pool, job("imaged"))
    await cluster.apply(node_class("imaged", amiSelectorTerms=[{"alias": "al2023@v20260601"}]))
    await drifted(cluster, claim, "AMIDrift")
    await cluster.apply(node_class("imaged"))
    name = claim["metadata"]["name"]

    async def as_before():
        return not condition(await cluster.kube.get("NodeClaim", name), "Drifted")

    await cluster.until(as_before, lambda: cluster.kube.get("NodeClaim", name))
    cluster.settings.faults.set("control-plane", {"version": "1.36"})
    try:
        await drifted(cluster, claim, "AMIDrift")
        await lives(cluster, "imaged")
    finally:
        cluster.settings.faults.clear("control-plane")
    await remove(cluster, "imaged", "imaged")


async def test_a_changed_class_and_changed_requirements_drift_nodes(cluster: Cluster):
    """aws cloudprovider/drift.go areStaticFieldsDrifted; core nodeclaim/disruption/drift.go areRequirementsDrifted."""
    await cluster.apply(node_class("classy"))
    claim = await running(cluster, node_pool("classy", disruption=HELD, class_name="classy"), job("classy"))
    await cluster.apply(node_class("classy", tags={"team": "ml"}))
    await drifted(cluster, claim, "NodeClassDrift")
    await cluster.apply(node_class("classy"), node_pool("classy", "g4dn.xlarge", disruption=HELD, class_name="classy"))
    await drifted(cluster, claim, "RequirementsDrifted")
    await lives(cluster, "classy", 30.0)
    await remove(cluster, "classy", "classy")


async def test_pods_of_daemonsets_and_pods_deleted_at_once_do_not_count_for_consolidation(cluster: Cluster):
    """core nodeclaim/podevents/controller.go: ``consolidateAfter`` is not counted anew for them."""
    claim = await running(cluster, node_pool("counted", disruption=HELD), job("counted", {}))
    name = claim["metadata"]["name"]

    async def recorded():
        return (await cluster.kube.get("NodeClaim", name))["status"].get("lastPodEventTime")

    await cluster.until(recorded, lambda: cluster.kube.get("NodeClaim", name))
    before = await recorded()
    await asyncio.sleep(1.1)  # whole seconds are recorded
    labels = {"app": "counted-agent"}
    spec = pool_pod("x", "counted", gpus=0, tolerations=[{"operator": "Exists"}])["spec"]
    del spec["restartPolicy"]
    agent = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "counted-agent", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    await cluster.apply(agent)

    async def up():
        found = await cluster.kube.list("Pod", "default", label_selector="app=counted-agent")
        return bool(found) and found[0]["status"].get("phase") == "Running"

    await cluster.until(up)
    await cluster.kube.delete("Pod", "counted", "default", grace_seconds=0)
    await cluster.gone("Pod", "counted", "default")
    await cluster.clock.sleep(30)
    assert await recorded() == before
    await cluster.apply(job("counted", {}))

    async def moved():
        return await recorded() != before

    await cluster.until(moved, lambda: cluster.kube.get("NodeClaim", name))
    await cluster.kube.delete("DaemonSet", "counted-agent", "default")
    await remove(cluster, "counted", "counted")
