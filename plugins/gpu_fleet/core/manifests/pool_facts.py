"""What a pool's NodePool and NodeOverlay need beyond the spec: hardware and prices. Pure.

Both are looked up by ``gpu_fleet.hooks.cluster.pool_facts`` when the manifests are applied or compared: in EC2, and in
the region's price list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.aws.hardware import Hardware
from gpu_fleet.core.spec import ClusterSpec, NodePool
from gpu_fleet.core.spec.instances import vcpus


@dataclass(frozen=True)
class PoolFacts:
    """
    :ivar hardware: the hardware of the pool's instance types according to EC2; ``None``: use the package's catalogue.
    :ivar prices: the list prices of the region's own file, by which pools are ranked.
    """

    hardware: Hardware | None = None
    prices: PriceList | None = None


UNKNOWN = PoolFacts()


def physical(pool: NodePool, facts: PoolFacts) -> int | None:
    """Physical GPUs per node."""
    return facts.hardware.count if facts.hardware is not None else pool.gpus_per_node


def most_vcpus(pool: NodePool, facts: PoolFacts) -> int | None:
    """vCPUs of the pool's largest type; ``None`` if one of them is not known."""
    known: Mapping[str, int] = facts.hardware.vcpus if facts.hardware is not None else {}
    found = [known.get(name) or vcpus(name) for name in pool.instance_types]
    return max(count for count in found if count is not None) if all(found) else None


def limits_of(pool: NodePool, facts: PoolFacts) -> dict[str, str]:
    """``spec.limits`` of the NodePool: the nodes, and the vCPUs of as many nodes of the largest type.

    ``nodes`` is compared between scheduling passes only: within one, Karpenter launches past it whatever the pods ask
    for (kubernetes-sigs/karpenter v1.14.1 pkg/controllers/provisioning/scheduling/scheduler.go, ``subtractMax``:
    instance types have no ``nodes`` that could be subtracted; #2915). ``cpu`` is subtracted, by the largest type that a
    planned node may become, and is on the node what the type promised. GPUs cannot be used: once a node is initialized,
    what its device plugin advertises counts, so nodes with an earlier sharing would count differently.
    """
    cpus = most_vcpus(pool, facts)
    return {"nodes": str(pool.node_limit), **({} if cpus is None else {"cpu": str(cpus * pool.node_limit)})}


def weights(spec: ClusterSpec, prices: PriceList) -> dict[str, int | None]:
    """``spec.weight`` of each pool's NodePool; ``None`` where it has none.

    The weight in the spec, otherwise the rank by price per GPU: the most expensive pool has no weight, and each cheaper
    one a greater weight, so that Karpenter buys from the cheapest pool that a pod can use. Weights are as small as
    possible, because a NodePool of others without a weight comes after all that have one. Pools with unknown prices
    rank as more expensive than the others; among them the GPUs per node (from the catalogue) decide, then the vCPUs,
    fewest first, then the name. A weight is in no node's hash, so nothing drifts by it (kubernetes-sigs/karpenter
    v1.14.1 pkg/apis/v1/nodepool.go, ``Hash``).

    :param prices: of the region's own file alone, which changes when somebody edits it: an answer of AWS would reorder
        the pools whenever it changes, or is missing.
    """
    places = sorted(spec.node_pools, key=lambda pool: _dearness(pool, prices), reverse=True)
    default = {pool.name: min(place, 100) or None for place, pool in enumerate(places)}
    return {pool.name: pool.weight or default[pool.name] for pool in spec.node_pools}


def _dearness(pool: NodePool, prices: PriceList) -> tuple[float, float, int, int, str]:
    """Ordered from cheap to dear. Karpenter launches the cheapest of a pool's types, so that one counts."""
    gpus = pool.gpus_per_node
    known = [cost for name in pool.instance_types if (cost := prices.instance(name).usd) is not None]
    per_gpu = min(known) / gpus if known and gpus else float("inf")
    # Of equal GPUs the shared one costs less per nvidia.com/gpu that a pod requests.
    per_request = per_gpu / pool.replicas
    return (
        per_gpu,
        per_request,
        gpus or 0,
        min((vcpus(name) or 0 for name in pool.instance_types), default=0),
        pool.name,
    )
