"""What an emergency teardown may touch: with Karpenter dead, only what this cluster file's own pools launched.

While Karpenter lives, it takes care of a NodePool that is being deleted, whoever owns it. In an emergency this package
terminates instances itself, and a NodePool that is gone or being deleted may belong to another team, or have
``manage: false``: what counts then are the EC2 tags of each instance. Karpenter puts ``spec.tags`` of the EC2NodeClass
on the instances (aws/karpenter-provider-aws v1.14 ``pkg/utils/utils.go`` ``GetTags``), and ours name cluster file and
pool (``core/manifests/build.py`` ``node_class``); ``karpenter.sh/nodepool`` is Karpenter's own tag.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_POOL, TAG_NODE_CLAIM, TAG_NODE_POOL
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.karpenter import Way
from gpu_fleet.core.teardown.remains import left_in_pools, living_pools, tags_of
from gpu_fleet.core.teardown.scope import doomed_pools, orphans_go, pool_of

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Scope:
    """What an emergency removes, of what a teardown finds left.

    :ivar instances: the instances to terminate.
    :ivar spared: instances that are left as well, but are not ours to terminate.
    :ivar claims: names of the NodeClaims of our pools.
    :ivar nodes: names of the nodes of our pools.
    """

    instances: list[Json]
    spared: list[Json]
    claims: list[str]
    nodes: list[str]


def our_pools(spec: ClusterSpec, node_pools: Iterable[Json], approved: Iterable[str] = ()) -> frozenset[str]:
    """Names of the NodePools whose instances an emergency may terminate: managed ones of the file, and those with our
    label that the file no longer has.

    :param approved: the pools of the approved plan, of which an earlier try may have deleted some.
    """
    kept = {pool.name for pool in spec.node_pools if not pool.manage}
    managed = {pool.name for pool in spec.node_pools if pool.manage}
    return frozenset(managed | set(doomed_pools(spec, node_pools)) | set(approved)) - kept


def is_ours(spec: ClusterSpec, instance: Json, pools: Collection[str]) -> bool:
    """Whether an instance's tags name this cluster file and one of these pools; one of the tags alone is not enough.

    A NodePool of others may use our EC2NodeClass, and its instances then carry that class's tags, too.
    """
    tags = tags_of(instance)
    pool = tags.get(TAG_NODE_POOL)
    return pool in pools and tags.get(LABEL_POOL) == pool and tags.get(LABEL_CLUSTER) == spec.name


def instance_of(item: Json) -> str:
    """The EC2 instance behind a node or a NodeClaim; empty if it names none (``aws:///us-west-2a/i-0abc``)."""
    provider = (item.get("spec") or {}).get("providerID") or (item.get("status") or {}).get("providerID") or ""
    return str(provider).rpartition("/")[2]


def without_instance(items: Iterable[Json], alive: Iterable[Json]) -> list[Json]:
    """The nodes and NodeClaims behind which no instance lives.

    :param alive: the instances that still cost money. An instance that was launched just before Karpenter died may be
        in no NodeClaim's status yet, but its tag names the NodeClaim.
    """
    living = list(alive)
    ids = {str(instance["InstanceId"]) for instance in living}
    claims = {tags_of(instance).get(TAG_NODE_CLAIM) for instance in living}
    return [item for item in items if instance_of(item) not in ids and item["metadata"]["name"] not in claims]


def finishable(items: Iterable[Json], pools: Collection[str], alive: Iterable[Json]) -> list[Json]:
    """The nodes and NodeClaims of our pools without an instance: only their finalizers may be removed.

    :param alive: see :func:`without_instance`.
    """
    return [item for item in without_instance(items, alive) if pool_of(item) in pools]


def others_left(
    spec: ClusterSpec,
    claims: Iterable[Json],
    nodes: Iterable[Json],
    node_pools: Iterable[Json],
    pools: Collection[str],
    alive: Iterable[Json],
) -> list[str]:
    """What an emergency neither removes nor waits for, in words: NodeClaims and nodes of others without an instance.

    Karpenter would remove them; without it no controller serves their finalizers, and waiting for them has no end.
    Those with an instance are named with their instance.

    :param pools: see :func:`our_pools`.
    :param alive: see :func:`without_instance`.
    """
    living, alive = living_pools(node_pools, standalone=not orphans_go(spec)), list(alive)
    return [
        f"{kind} {item['metadata']['name']} (NodePool {pool_of(item) or 'none'})"
        for kind, items in (("NodeClaim", claims), ("Node", nodes))
        for item in sorted(without_instance(left_in_pools(items, living), alive), key=lambda i: i["metadata"]["name"])
        if pool_of(item) not in pools
    ]


def emergency_scope(
    spec: ClusterSpec,
    left: Sequence[Json],
    claims: Iterable[Json],
    nodes: Iterable[Json],
    pools: Collection[str],
) -> Scope:
    """What an emergency removes and what it spares.

    :param left: the instances that a teardown finds left (:func:`gpu_fleet.core.teardown.remains.left_instances`).
    :param pools: see :func:`our_pools`.
    """
    return Scope(
        [instance for instance in left if is_ours(spec, instance, pools)],
        [instance for instance in left if not is_ours(spec, instance, pools)],
        claims=sorted(item["metadata"]["name"] for item in claims if pool_of(item) in pools),
        nodes=sorted(item["metadata"]["name"] for item in nodes if pool_of(item) in pools),
    )


def is_worse(approved: str | None, now: Way) -> bool:
    """Whether a teardown would become an emergency, which ignores PodDisruptionBudgets, without approval of that.

    :param approved: ``way`` of the approved plan, ``None`` without one.
    """
    return now is Way.EMERGENCY and approved != Way.EMERGENCY.value
