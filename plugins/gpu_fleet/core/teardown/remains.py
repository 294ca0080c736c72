"""What is left of a fleet that is torn down: the NodeClaims, nodes, instances and node classes to be removed.

What belongs to a NodePool that is not being deleted is not among them: it belongs to others, or to a pool with
``manage: false``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_NODE_POOL, TAG_NODE_POOL, owned_tag
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.core.queries import AwsQuery

#: EC2 states in which an instance costs money, or can do so again; not ``shutting-down`` and ``terminated``.
COSTLY_STATES = ("pending", "running", "stopping", "stopped")

#: The pool of a NodeClaim that was created by hand, without a NodePool; Karpenter tags its instance with it, too. It
#: does not stand for an instance without the tag.
NO_POOL = ""

_SHOWN = 5


def karpenter_instances(cluster: str, key: str = "instances") -> AwsQuery:
    """The cluster's Karpenter-launched instances that still cost money.

    Tags: aws/karpenter-provider-aws v1.14 pkg/apis/v1/labels.go and pkg/providers/instance.
    """
    return AwsQuery(
        key,
        "ec2",
        "describe_instances",
        {
            "Filters": [
                {"Name": f"tag:{owned_tag(cluster)}", "Values": ["owned"]},
                {"Name": "tag-key", "Values": [TAG_NODE_POOL]},
                {"Name": "instance-state-name", "Values": list(COSTLY_STATES)},
            ]
        },
        path="Reservations.Instances",
    )


def tags_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """EC2's ``[{"Key": …, "Value": …}]`` as a dictionary."""
    return {tag["Key"]: tag.get("Value", "") for tag in resource.get("Tags") or []}


def capacity_type(instance: Mapping[str, Any]) -> str:
    """``spot`` or ``on-demand``, according to EC2."""
    return "spot" if instance.get("InstanceLifecycle") == "spot" else "on-demand"


def zone_of(instance: Mapping[str, Any]) -> str:
    """The availability zone according to EC2; empty if it does not say."""
    return str((instance.get("Placement") or {}).get("AvailabilityZone") or "")


def living_pools(pools: Iterable[Mapping[str, Any]], *, standalone: bool = False) -> frozenset[str]:
    """Names of the NodePools that are not being deleted.

    :param standalone: include :data:`NO_POOL`, so that what belongs to no pool counts as living.
    """
    names = frozenset(pool["metadata"]["name"] for pool in pools if not deleting(pool))
    return names | {NO_POOL} if standalone else names


def left_in_pools(items: Iterable[Mapping[str, Any]], living: frozenset[str]) -> list[Mapping[str, Any]]:
    """NodeClaims or nodes whose NodePool is gone, being deleted, or never existed."""
    return [
        item for item in items if (item["metadata"].get("labels") or {}).get(LABEL_NODE_POOL, NO_POOL) not in living
    ]


def left_instances(instances: Iterable[Mapping[str, Any]], living: frozenset[str]) -> list[Mapping[str, Any]]:
    """Instances in a state that costs money whose NodePool is gone, being deleted, or never existed."""
    return [
        instance
        for instance in instances
        if (instance.get("State") or {}).get("Name") in COSTLY_STATES
        and tags_of(instance).get(TAG_NODE_POOL) not in living
    ]


def left_classes(
    classes: Iterable[Mapping[str, Any]], spec_name: str, kept: Collection[str]
) -> list[Mapping[str, Any]]:
    """The existing EC2NodeClasses that a teardown removes: those with our label of this cluster spec that belong to no
    kept pool. The file may no longer have their pools.

    :param spec_name: name of the cluster spec.
    :param kept: pools with ``manage: false``.
    """
    return [
        item
        for item in classes
        if (item["metadata"].get("labels") or {}).get(LABEL_CLUSTER) == spec_name
        and item["metadata"]["name"] not in kept
    ]


def shorten(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
