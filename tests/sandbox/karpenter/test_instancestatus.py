"""Karpenter looks at EC2's status checks and scheduled events itself (aws/karpenter-provider-aws v1.14.1
``pkg/controllers/interruption/instancestatus_controller.go``, ``suite_test.go``: "DescribeInstanceStatus")."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox.karpenter.controllers.instancestatus import EVENT_CODES, INTERVAL, THRESHOLD
from sandbox.karpenter.durations import epoch
from tests.sandbox.karpenter.talk import claims, pool_pod, ready_pool, remove
from tests.sandbox.nodes.cluster import Cluster, node_class, node_pool, simulated

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.full]
DEADLINE = "karpenter.sh/nodeclaim-termination-timestamp"
DENIED = {"actions": ["ec2:DescribeInstanceStatus"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Karpenter behind the shim, without an interruption queue, forty times as fast as real."""
    async with simulated(tmp_path_factory.mktemp("status"), speed=40.0, eks=True) as made:
        await made.install_karpenter(queue=False)
        await made.install_plugin({"exclusive": "version: v1\n"})
        await made.apply(node_class())
        yield made


async def node_of(cluster: Cluster, pool: str) -> tuple[dict, str]:
    """A pool with a pod on a node: its claim, and the instance."""
    await ready_pool(cluster, node_pool(pool))
    await cluster.apply(pool_pod(pool, pool, labels={"app": pool}))
    claim = (await claims(cluster, pool, 1, "Registered"))[0]
    await cluster.pod_phase(pool, "Running")
    return claim, claim["status"]["providerID"].rsplit("/", 1)[1]


async def budget(cluster: Cluster, name: str) -> None:
    await cluster.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": name}}},
        }
    )


async def deletion(cluster: Cluster, claim: dict) -> dict | None:
    found = await cluster.kube.find("NodeClaim", claim["metadata"]["name"])
    return found if found is None or found["metadata"].get("deletionTimestamp") else {}


async def test_an_event_weeks_ahead_ends_the_claim_within_a_minute(watched: Cluster):
    claim, instance = await node_of(watched, "retired")
    ahead = time.time() + 14 * 86400
    watched.settings.statuses.schedule(instance, "instance-retirement", "retired", ahead, ahead + 7200)
    began = time.monotonic()
    await watched.gone("NodeClaim", claim["metadata"]["name"])
    assert time.monotonic() - began < watched.clock.real(INTERVAL) + 15
    name = claim["metadata"]["name"]
    assert await watched.events(name, "InstanceUnhealthy") == ["An unhealthy warning was triggered for the instance"]
    text = "Interruption triggered termination for the NodeClaim"
    assert await watched.events(name, "TerminatingOnInterruption") == [text]
    await remove(watched, "retired", "retired")


async def test_an_event_respects_budgets_also_when_it_is_over(watched: Cluster):
    claim, instance = await node_of(watched, "rebooted")
    await budget(watched, "rebooted")
    watched.settings.statuses.schedule(instance, "system-reboot", "[Completed] rebooted", 0, 0)
    await watched.event(claim["status"]["nodeName"], "FailedDraining")
    found = await watched.kube.get("NodeClaim", claim["metadata"]["name"])
    assert DEADLINE not in found["metadata"].get("annotations", {})
    await watched.kube.delete("PodDisruptionBudget", "rebooted", "default")
    await watched.gone("NodeClaim", claim["metadata"]["name"])
    await remove(watched, "rebooted", "rebooted")


@pytest.mark.parametrize("check", ["instance", "system"])
async def test_a_failed_check_counts_after_two_minutes_and_ends_pods_past_their_budgets(watched: Cluster, check: str):
    claim, instance = await node_of(watched, check)
    await budget(watched, check)
    since = time.time()
    watched.settings.statuses.impair(instance, check, since)
    found = await watched.until(lambda: deletion(watched, claim))
    deleted = epoch(found["metadata"]["deletionTimestamp"])
    assert deleted - since >= watched.clock.real(THRESHOLD) - 1  # time stamps are whole seconds
    assert epoch(found["metadata"]["annotations"][DEADLINE]) <= deleted
    await watched.gone("NodeClaim", claim["metadata"]["name"])
    assert "bypasses the PDB" in await watched.event(check, "Disrupted")
    await watched.kube.delete("PodDisruptionBudget", check, "default")
    await remove(watched, check, check)


async def test_other_instances_and_other_codes_are_no_concern(watched: Cluster):
    claim, instance = await node_of(watched, "calm")
    watched.settings.statuses.schedule(instance, "instance-mood", "strange", 0, 0)
    watched.settings.statuses.schedule("i-0123456789abcdef0", EVENT_CODES[0], "foreign", 0, 0)
    await watched.clock.sleep(2 * INTERVAL)
    assert await deletion(watched, claim) == {}
    await remove(watched, "calm", "calm")


async def test_without_the_permission_it_stops_until_karpenter_is_restarted(watched: Cluster):
    claim, instance = await node_of(watched, "blind")
    await watched.stop("karpenter")
    watched.settings.faults.set("aws-denied", DENIED)
    watched.start("karpenter")
    await asyncio.sleep(1.5)
    watched.settings.faults.clear()
    watched.settings.statuses.schedule(instance, "instance-stop", "stopped", 0, 0)
    await watched.clock.sleep(3 * INTERVAL)
    assert await deletion(watched, claim) == {}
    await watched.stop("karpenter")
    watched.start("karpenter")
    await watched.gone("NodeClaim", claim["metadata"]["name"])
    await remove(watched, "blind", "blind")
