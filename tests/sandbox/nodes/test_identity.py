"""Who EKS lets in: a node without an access entry never registers, Karpenter without credentials never starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from sandbox.karpenter.conditions import condition
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, karpenter_deployment, node_class, node_pool, simulated

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROLE = "arn:aws:iam::123456789012:role/KarpenterNodeRole-demo-gpu"
Object = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    # So fast that Karpenter's 15 minutes for a registration are seconds.
    async with simulated(tmp_path_factory.mktemp("identity"), speed=120.0, eks=True) as made:
        yield made


async def controller(cluster: Cluster) -> Object | None:
    """The status of Karpenter's container."""
    pods = await cluster.kube.list("Pod", "kube-system", label_selector="app.kubernetes.io/name=karpenter")
    statuses = [each for pod in pods for each in pod["status"].get("containerStatuses") or []]
    return statuses[0] if statuses else None


async def test_karpenter_without_an_identity_crashes_until_its_pod_is_made_anew_with_one(cluster: Cluster) -> None:
    (found,) = (
        await cluster.aws.call("eks", "list_pod_identity_associations", clusterName="demo-gpu", namespace="kube-system")
    )["associations"]
    await cluster.aws.call(
        "eks", "delete_pod_identity_association", clusterName="demo-gpu", associationId=found["associationId"]
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    await cluster.apply(account | {"metadata": {"name": "karpenter", "namespace": "kube-system"}})
    await cluster.apply(karpenter_deployment("demo-gpu"))

    async def crashes() -> Object | None:
        status = await controller(cluster)
        waiting = ((status or {}).get("state") or {}).get("waiting") or {}
        return status if waiting.get("reason") == "CrashLoopBackOff" and status["restartCount"] else None  # type: ignore[index]

    status = await cluster.until(crashes, lambda: controller(cluster))
    assert status["lastState"]["terminated"]["exitCode"] == 2
    assert status["ready"] is False

    # The webhook gives credentials to pods that are created: an association that comes later helps none that stands.
    await cluster.aws.call(
        "eks",
        "create_pod_identity_association",
        clusterName="demo-gpu",
        namespace="kube-system",
        serviceAccount="karpenter",
        roleArn="arn:aws:iam::123456789012:role/KarpenterControllerRole-demo-gpu",
    )
    before = status["restartCount"]

    async def crashes_again() -> bool:
        status = await controller(cluster)
        return bool(status and status["restartCount"] > before and not status["ready"])

    await cluster.until(crashes_again, lambda: controller(cluster))
    for pod in await cluster.kube.list("Pod", "kube-system", label_selector="app.kubernetes.io/name=karpenter"):
        await cluster.kube.delete("Pod", pod["metadata"]["name"], "kube-system")

    async def serves() -> bool:
        status = await controller(cluster)
        return bool(status and status["ready"])

    await cluster.until(serves, lambda: controller(cluster))


async def test_a_node_without_an_access_entry_never_registers_and_its_claim_is_given_up(cluster: Cluster) -> None:
    await cluster.install_karpenter()
    await cluster.aws.call("eks", "delete_access_entry", clusterName="demo-gpu", principalArn=ROLE)
    await cluster.apply(node_class(), node_pool())
    await cluster.kube.create(gpu_pod("waits"))

    async def unregistered() -> Object | None:
        for claim in await cluster.claims():
            if condition(claim, "Launched").get("status") == "True":
                return claim
        return None

    first = await cluster.until(unregistered, cluster.claims)

    async def given_up() -> Object | None:
        (pool,) = await cluster.kube.list("NodePool")
        later = [claim for claim in await cluster.claims() if claim["metadata"]["uid"] != first["metadata"]["uid"]]
        return condition(pool, "NodeRegistrationHealthy") if later else None

    health = await cluster.until(given_up, cluster.claims)
    assert (health["status"], health["reason"]) == ("False", "RegistrationFailed")
    assert await cluster.pool_nodes() == []
    # The liveness controller logs and counts; it makes no event (core v1.14.1 nodeclaim/lifecycle/liveness.go).
    assert await cluster.events(first["metadata"]["name"], "RegistrationTimeout") == []

    # The kubelet of the next instance goes on trying: with the entry it joins.
    entry = {"clusterName": "demo-gpu", "principalArn": ROLE, "type": "EC2_LINUX"}
    await cluster.aws.call("eks", "create_access_entry", **entry)
    await cluster.until(cluster.pool_nodes, cluster.claims)
