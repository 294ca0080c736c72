"""What of a fleet that is torn down is still there: NodeClaims, nodes, instances and node classes that were to go.

What belongs to a NodePool that lives on is somebody else's, or of a pool with ``manage: false``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_NODE_POOL, TAG_NODE_POOL, owned_tag
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.core.queries import AwsQuery

#: EC2 states in which an instance costs money or can come back to do so; ``shutting-down`` and ``terminated`` do not.
COSTLY_STATES = ("pending", "running", "stopping", "stopped")

#: The pool of a NodeClaim that somebody made by hand; Karpenter tags its instance so, too. An instance without the tag
#: is not meant.
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


def living_pools(pools: Iterable[Mapping[str, Any]], *, standalone: bool = False) -> frozenset[str]:
    """Names of the NodePools that are not being deleted.

    :param standalone: with :data:`NO_POOL` among them, so that what belongs to no pool lives on too.
    """
    names = frozenset(pool["metadata"]["name"] for pool in pools if not deleting(pool))
    return names | {NO_POOL} if standalone else names


def left_in_pools(items: Iterable[Mapping[str, Any]], living: frozenset[str]) -> list[Mapping[str, Any]]:
    """NodeClaims or nodes whose NodePool is gone, going, or was never there."""
    return [
        item for item in items if (item["metadata"].get("labels") or {}).get(LABEL_NODE_POOL, NO_POOL) not in living
    ]


def left_instances(instances: Iterable[Mapping[str, Any]], living: frozenset[str]) -> list[Mapping[str, Any]]:
    """Instances in a state that costs money whose NodePool is gone, going, or was never there."""
    return [
        instance
        for instance in instances
        if (instance.get("State") or {}).get("Name") in COSTLY_STATES
        and tags_of(instance).get(TAG_NODE_POOL) not in living
    ]


def left_classes(
    classes: Iterable[Mapping[str, Any]], spec_name: str, kept: Collection[str]
) -> list[Mapping[str, Any]]:
    """The EC2NodeClasses that a teardown removes, among those that exist: they carry our label of this cluster spec,
    and are of no pool that is kept. The file need not have them any more.

    :param spec_name: name of the cluster spec. :param kept: pools with ``manage: false``.
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
