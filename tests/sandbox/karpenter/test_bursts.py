"""What a burst of pods buys: shares, NodeOverlays, limits and the order of pools, in a whole simulated cluster.

Measured on a real core 1.13, and read in kubernetes-sigs/karpenter v1.14.1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox.kube.resources import ApiError
from tests.sandbox.karpenter.talk import claims, conditions_of, pool_pod, ready_pool, remove
from tests.sandbox.nodes.cluster import (
    Cluster,
    gpu_pod,
    karpenter_deployment,
    node_class,
    node_overlay,
    node_pool,
    simulated,
    slicing,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

APPLIED = "karpenter.sh/capacity-overlay-applied"
CONFIG = "nvidia.com/device-plugin.config"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Karpenter with the gate on, as the chart's ``settings.featureGates.nodeOverlay`` makes it."""
    async with simulated(tmp_path_factory.mktemp("bursts"), speed=100.0) as made:
        await made.install_karpenter("ReservedCapacity=true,NodeOverlay=true")
        await made.install_plugin({"exclusive": "version: v1\n", "four": slicing(4)})
        await made.apply(node_class())
        yield made


def shared(name, **pool):
    return node_pool(name, labels={CONFIG: "four"}, **pool)


async def burst(cluster, pool, count):
    names = [f"{pool}-{number}" for number in range(count)]
    await cluster.apply(*(pool_pod(name, pool) for name in names))
    return names


async def all_running(cluster, names):
    for name in names:
        await cluster.pod_phase(name, "Running")


async def allocatable(claim):
    return (claim.get("status") or {}).get("allocatable", {}).get("nvidia.com/gpu")


async def no_overlay(cluster, name):
    await cluster.kube.delete("NodeOverlay", name)


async def test_with_an_overlay_eight_shares_buy_two_nodes(cluster):
    await cluster.apply(node_overlay("sharing", "two", 4))
    await ready_pool(cluster, shared("two"))
    found = await conditions_of(cluster, "NodeOverlay", "sharing", "ValidationSucceeded", "Ready")
    assert {key: value[0] for key, value in found.items()} == {"ValidationSucceeded": "True", "Ready": "True"}
    names = await burst(cluster, "two", 8)
    await all_running(cluster, names)
    bought = await claims(cluster, "two", 2, "Initialized")
    assert [each["metadata"]["annotations"][APPLIED] for each in bought] == ["true", "true"]
    assert [each["status"]["allocatable"]["nvidia.com/gpu"] for each in bought] == ["4", "4"]
    await remove(cluster, "two", *names)
    await no_overlay(cluster, "sharing")


async def test_without_one_they_buy_eight(cluster):
    await ready_pool(cluster, shared("eight"))
    names = await burst(cluster, "eight", 8)
    await all_running(cluster, names)
    bought = await claims(cluster, "eight", 8)
    assert all(APPLIED not in each["metadata"]["annotations"] for each in bought)
    await remove(cluster, "eight", *names)


async def test_an_overlay_that_promises_more_than_the_node_offers_cascades(cluster):
    """Still ``Initialized``: what is asked for is there. Then pod after pod finds no share and buys a node."""
    await cluster.apply(node_overlay("lying", "cascade", 4))
    await ready_pool(cluster, node_pool("cascade", labels={CONFIG: "exclusive"}))
    names = await burst(cluster, "cascade", 4)
    await all_running(cluster, names)
    assert len(await claims(cluster, "cascade", 4, "Initialized")) == 4
    await remove(cluster, "cascade", *names)
    await no_overlay(cluster, "lying")


async def test_a_claim_of_no_pool_gets_no_overlay(cluster):
    """AWS v1.14.1 ``pkg/cloudprovider/cloudprovider.go``, ``Create``: by the claim's nodepool label alone."""
    requirement = {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.xlarge"]}
    await cluster.apply({**node_overlay("types", "", 4), "spec": {"requirements": [requirement],
                                                                  "capacity": {"nvidia.com/gpu": "4"}}})  # fmt: skip
    await conditions_of(cluster, "NodeOverlay", "types", "Ready")
    claim = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {"name": "alone"},
        "spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
            "requirements": [requirement],
            "resources": {"requests": {"nvidia.com/gpu": "1"}},
        },
    }
    await cluster.apply(claim)

    async def launched():
        found = await cluster.kube.get("NodeClaim", "alone")
        return found if await allocatable(found) else None

    assert await allocatable(await cluster.until(launched)) == "1"
    await cluster.kube.delete("NodeClaim", "alone")
    await cluster.gone("NodeClaim", "alone")
    await no_overlay(cluster, "types")


async def test_two_overlays_of_one_weight_conflict(cluster):
    await ready_pool(cluster, shared("both"))
    await cluster.apply(node_overlay("first", "both", 4), node_overlay("second", "both", 8))

    async def told():
        found = await conditions_of(cluster, "NodeOverlay", "first", "ValidationSucceeded")
        return found["ValidationSucceeded"][0] == "False"

    await cluster.until(told)
    assert await conditions_of(cluster, "NodeOverlay", "first", "ValidationSucceeded", "Ready") == {
        "ValidationSucceeded": ("False", "Conflict", "conflict with another overlay"),
        "Ready": ("False", "UnhealthyDependents", "ValidationSucceeded=False"),
    }
    await remove(cluster, "both")
    await no_overlay(cluster, "first")
    await no_overlay(cluster, "second")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"capacity": {"cpu": "4"}}, "invalid resource restricted"),
        (
            {"requirements": [{"key": "a", "operator": "In"}]},
            "requirements with operator 'In' must have a value defined",
        ),
        ({"price": "1", "priceAdjustment": "+10%"}, "cannot set both 'price' and 'priceAdjustment'"),
        ({"weight": 10001}, "10000"),
    ],
)
async def test_what_the_schema_refuses(cluster, spec, text):
    overlay = node_overlay("bad", "gpu", 4)
    overlay["spec"] |= spec
    with pytest.raises(ApiError, match=text.replace("'", ".")):
        await cluster.apply(overlay)


async def refused(cluster, names):
    """Once Karpenter has refused one of the pods for a limit."""
    text = "all available instance types exceed limits for nodepool"

    async def look():
        return [name for name in names for each in await cluster.events(name, "FailedScheduling") if text in each]

    return await cluster.until(look)


async def test_a_burst_runs_over_a_limit_on_nodes(cluster):
    """The pods come before the pool, so that one pass sees them all."""
    names = await burst(cluster, "over", 5)
    await ready_pool(cluster, node_pool("over", limits={"nodes": "2"}))
    await all_running(cluster, names)
    assert len(await claims(cluster, "over", 5)) == 5
    await cluster.apply(pool_pod("late", "over"))
    assert await refused(cluster, ["late"])
    assert len(await claims(cluster, "over")) == 5
    await remove(cluster, "over", "late", *names)


async def test_a_limit_on_cpus_holds_within_a_burst(cluster):
    names = await burst(cluster, "held", 5)
    await ready_pool(cluster, node_pool("held", limits={"nodes": "2", "cpu": "8"}))
    assert await refused(cluster, names)
    assert len(await claims(cluster, "held", 2, "Initialized")) == 2
    await remove(cluster, "held", *names)


async def test_of_equal_weights_the_last_name_is_bought_from(cluster):
    """``pkg/utils/nodepool/nodepool.go``, ``OrderByWeight``."""
    await ready_pool(cluster, node_pool("aa"))
    await ready_pool(cluster, node_pool("zz", "p4d.24xlarge"))
    await cluster.apply(gpu_pod("anywhere"))
    await cluster.pod_phase("anywhere", "Running")
    assert (len(await claims(cluster, "aa")), len(await claims(cluster, "zz"))) == (0, 1)
    await remove(cluster, "zz", "anywhere")
    await remove(cluster, "aa")


async def test_a_heavier_pool_is_bought_from_first(cluster):
    heavy = node_pool("aa")
    heavy["spec"]["weight"] = 1
    await ready_pool(cluster, heavy)
    await ready_pool(cluster, node_pool("zz", "p4d.24xlarge"))
    await cluster.apply(gpu_pod("anywhere"))
    await cluster.pod_phase("anywhere", "Running")
    assert (len(await claims(cluster, "aa")), len(await claims(cluster, "zz"))) == (1, 0)
    await remove(cluster, "aa", "anywhere")
    await remove(cluster, "zz")


async def test_without_the_gate_overlays_are_not_even_looked_at(cluster):
    """The last test here: it changes the controller. The new pod leads with the gates that its template has."""
    await cluster.apply(karpenter_deployment(cluster.settings.cluster_name))

    async def replaced():
        pods = await cluster.kube.list("Pod", "kube-system", label_selector="app.kubernetes.io/name=karpenter")
        env = [item["name"] for pod in pods for item in pod["spec"]["containers"][0]["env"]]
        return len(pods) == 1 and "FEATURE_GATES" not in env

    await cluster.until(replaced)
    await cluster.apply(node_overlay("idle", "off", 4))
    await ready_pool(cluster, shared("off"))
    names = await burst(cluster, "off", 8)
    await all_running(cluster, names)
    assert len(await claims(cluster, "off", 8)) == 8
    assert not (await cluster.kube.get("NodeOverlay", "idle")).get("status")
    await remove(cluster, "off", *names)
