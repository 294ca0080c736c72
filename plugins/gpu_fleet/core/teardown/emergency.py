"""What an emergency teardown may touch: with Karpenter dead, nothing but what this cluster file's own pools launched.

While Karpenter lives, a NodePool that is being deleted is its affair, whoever owns it. In an emergency this package
terminates instances itself, and a NodePool that is going (or gone) may well be another team's, or one with
``manage: false``: what counts then are the EC2 tags of each instance. Karpenter puts ``spec.tags`` of the EC2NodeClass
on the instances (aws/karpenter-provider-aws v1.14 ``pkg/utils/utils.go`` ``GetTags``), and ours name cluster file and
pool (``core/manifests/build.py`` ``node_class``); ``karpenter.sh/nodepool`` is its own tag.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_POOL, TAG_NODE_CLAIM, TAG_NODE_POOL
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.karpenter import Way
from gpu_fleet.core.teardown.remains import tags_of
from gpu_fleet.core.teardown.scope import doomed_pools, pool_of

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Scope:
    """What an emergency takes, of what a teardown finds left.

    :ivar instances: to terminate. :ivar spared: those that are left as well, and not ours to terminate.
    :ivar claims: names of the NodeClaims of our pools. :ivar nodes: of their nodes.
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
    """Whether an instance's tags name this cluster file and one of these pools; one tag alone does not do.

    A NodePool of others may use our EC2NodeClass, whose tags its instances carry then, too.
    """
    tags = tags_of(instance)
    pool = tags.get(TAG_NODE_POOL)
    return pool in pools and tags.get(LABEL_POOL) == pool and tags.get(LABEL_CLUSTER) == spec.name


def instance_of(item: Json) -> str:
    """The EC2 instance behind a node or a NodeClaim; empty if it names none (``aws:///us-west-2a/i-0abc``)."""
    provider = (item.get("spec") or {}).get("providerID") or (item.get("status") or {}).get("providerID") or ""
    return str(provider).rpartition("/")[2]


def finishable(items: Iterable[Json], pools: Collection[str], alive: Iterable[Json]) -> list[Json]:
    """The nodes and NodeClaims of our pools behind which no instance lives: only their finalizers may be taken off.

    :param alive: the instances that still cost money. One that was launched just before Karpenter died may stand in no
        NodeClaim yet; but its tag names the NodeClaim.
    """
    living = list(alive)
    ids = {str(instance["InstanceId"]) for instance in living}
    claims = {tags_of(instance).get(TAG_NODE_CLAIM) for instance in living}
    return [
        item
        for item in items
        if pool_of(item) in pools and instance_of(item) not in ids and item["metadata"]["name"] not in claims
    ]


def emergency_scope(
    spec: ClusterSpec,
    left: Sequence[Json],
    claims: Iterable[Json],
    nodes: Iterable[Json],
    pools: Collection[str],
) -> Scope:
    """What goes and what is spared.

    :param left: the instances that a teardown finds left (``core/gates/teardown.py`` ``left_instances``).
    :param pools: see :func:`our_pools`.
    """
    return Scope(
        [instance for instance in left if is_ours(spec, instance, pools)],
        [instance for instance in left if not is_ours(spec, instance, pools)],
        claims=sorted(item["metadata"]["name"] for item in claims if pool_of(item) in pools),
        nodes=sorted(item["metadata"]["name"] for item in nodes if pool_of(item) in pools),
    )


def is_worse(approved: str | None, now: Way) -> bool:
    """Whether an emergency is about to be carried out that nobody has approved: it respects no PodDisruptionBudget.

    :param approved: ``way`` of the approved plan, ``None`` without one.
    """
    return now is Way.EMERGENCY and approved != Way.EMERGENCY.value
