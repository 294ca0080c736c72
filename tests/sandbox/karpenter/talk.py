"""Short ways to talk to Karpenter in a simulated cluster."""

from __future__ import annotations

from typing import Any

from sandbox.karpenter.conditions import condition, is_true
from tests.sandbox.nodes.cluster import Cluster, gpu_pod

Object = dict[str, Any]
PAUSE = "registry.k8s.io/pause:3.10"


async def conditions_of(cluster: Cluster, kind: str, name: str, *types: str) -> dict[str, tuple[str, str, str]]:
    """Conditions by type as (status, reason, message), once they all are there."""

    async def look():
        found = await cluster.kube.find(kind, name)
        shown = {each: condition(found or {}, each) for each in types}
        return found if all(shown.values()) else None

    found = await cluster.until(look, lambda: cluster.kube.find(kind, name))
    shown = {each: condition(found, each) for each in types}
    return {key: (value["status"], value["reason"], value["message"]) for key, value in shown.items()}


async def ready_pool(cluster: Cluster, pool: Object) -> None:
    await cluster.apply(pool)
    name = pool["metadata"]["name"]

    async def ready():
        return is_true(await cluster.kube.get("NodePool", name), "Ready")

    await cluster.until(ready, lambda: cluster.kube.get("NodePool", name))


async def claims(cluster: Cluster, pool: str, count: int | None = None, state: str | None = None) -> list[Object]:
    """The pool's claims; waits for ``count`` of them in that state."""

    async def look():
        found = [each for each in await cluster.claims() if each["metadata"]["labels"]["karpenter.sh/nodepool"] == pool]
        if state is not None:
            found = [each for each in found if is_true(each, state)]
        return found if count is None or len(found) == count else None

    if count is None:
        return await look() or []
    return await cluster.until(look, cluster.claims)


async def remove(cluster: Cluster, pool: str, *pods: str) -> None:
    for pod in pods:
        await cluster.kube.delete("Pod", pod, "default", grace_seconds=0)
    await cluster.kube.delete("NodePool", pool)

    async def none():
        return not await claims(cluster, pool)

    await cluster.until(none, cluster.claims)


def pool_pod(name: str, pool: str, gpus: int = 1, **more: Any) -> Object:
    return gpu_pod(name, gpus, PAUSE, nodeSelector={"karpenter.sh/nodepool": pool}, **more)


def deployed(pool: str) -> Object:
    spec = pool_pod("x", pool)["spec"]
    return {key: value for key, value in spec.items() if key != "restartPolicy"}
