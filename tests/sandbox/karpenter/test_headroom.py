"""Headroom as the package makes it, on a cluster that buys nodes: what deadline, users and limits do to it.

kubernetes v1.35 ``pkg/controller/job/job_controller.go``: ``activeDeadlineSeconds`` of a Job counts from its start
and ends also a pod that was never scheduled; with ``backoffLimit`` 0 a pod that was preempted is not replaced.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gpu_fleet.core.capacity.headroom import headroom_job, headroom_name
from sandbox.karpenter.conditions import is_true
from tests.sandbox.karpenter.talk import PAUSE, claims, ready_pool, remove
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, node_class, node_pool, simulated
from tests.unit.core.specs import demo_spec

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.full]

POOL, SYSTEM = "whole-a100", "gpu-fleet-system"
IMAGE = "registry.k8s.io/pause:3.10"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with simulated(tmp_path_factory.mktemp("headroom"), speed=100.0) as made:
        await made.install_karpenter()
        await made.install_plugin()
        low = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": -10}
        await made.apply(
            node_class(),
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}},
            {**low, "metadata": {"name": "gpu-fleet-placeholder"}, "preemptionPolicy": "Never"},
        )
        yield made


def job(index: int, seconds: float, **spec: Any) -> dict[str, Any]:
    """:param seconds: simulated ones, until the window closes."""
    pool = demo_spec().pool(POOL)
    made = headroom_job(
        *("demo", pool, index), until=seconds, now=0.0, physical=1, image=IMAGE, run="r/1", run_label="abc"
    )
    # The labels and taints of the sandbox's short pool.
    pod = made["spec"]["template"]["spec"]
    pod["nodeSelector"] = {"karpenter.sh/nodepool": POOL}
    pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    made["spec"] |= spec
    return made


async def pods_of(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return await cluster.kube.list("Pod", SYSTEM, label_selector=f"batch.kubernetes.io/job-name={name}")


async def over(cluster: Cluster, name: str) -> dict[str, Any]:
    """The Job once it has failed and its pods are gone or ended."""

    async def look() -> dict[str, Any] | None:
        found = await cluster.kube.get("Job", name, SYSTEM)
        return found if is_true(found, "Failed") else None

    return await cluster.until(look, lambda: cluster.kube.get("Job", name, SYSTEM))


async def test_users_take_the_places_of_placeholders_and_nothing_is_bought_on_top(cluster: Cluster) -> None:
    await ready_pool(cluster, node_pool(POOL, limits={"nodes": 2, "cpu": "8"}))
    first, second = headroom_name(POOL, 0), headroom_name(POOL, 1)
    await cluster.apply(job(0, 100_000), job(1, 100_000))
    # Two placeholders never share a node.
    assert len({claim["status"]["nodeName"] for claim in await claims(cluster, POOL, 2, "Initialized")}) == 2

    async def held() -> bool:
        return all([any(p["spec"].get("nodeName") for p in await pods_of(cluster, name)) for name in (first, second)])

    await cluster.until(held)
    await cluster.apply(gpu_pod("user", 1, PAUSE, nodeSelector={"karpenter.sh/nodepool": POOL}))
    await cluster.pod_phase("user", "Running")

    async def displaced() -> list[str]:
        found = [await cluster.kube.get("Job", name, SYSTEM) for name in (first, second)]
        return [each["metadata"]["name"] for each in found if is_true(each, "Failed")]

    [gone] = await cluster.until(displaced)
    assert [pod for pod in await pods_of(cluster, gone) if not pod["metadata"].get("deletionTimestamp")] == []
    assert len(await claims(cluster, POOL)) == 2
    for name in (first, second):
        await cluster.kube.delete("Job", name, SYSTEM)
    await remove(cluster, POOL, "user")


async def test_a_window_that_closes_ends_a_placeholder_that_still_waits(cluster: Cluster) -> None:
    await ready_pool(cluster, node_pool(POOL, limits={"nodes": 0}))
    name = headroom_name(POOL, 0)
    await cluster.apply(job(0, 300))
    ended = await over(cluster, name)
    assert [each["reason"] for each in ended["status"]["conditions"] if each["type"] == "Failed"] == [
        "DeadlineExceeded"
    ]

    async def none() -> bool:
        return not await pods_of(cluster, name)

    await cluster.until(none)
    # Room comes too late: nothing asks for it any more.
    await ready_pool(cluster, node_pool(POOL, limits={"nodes": 2}))
    assert await claims(cluster, POOL) == []
    # And the Job goes by itself.
    await cluster.gone("Job", name, SYSTEM)
    await remove(cluster, POOL)
