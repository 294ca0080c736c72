"""Finds what a teardown has left behind, with prices.

Sources of the tags: aws/karpenter-provider-aws v1.14 (pkg/apis/v1/labels.go, pkg/utils/utils.go ``GetTags``,
pkg/apis/v1/ec2nodeclass.go ``InstanceProfileTags``); until 1.0 launch templates had a tag of their own instead of
``eks:eks-cluster-name`` (pkg/providers/launchtemplate). Of network interfaces: the Amazon VPC CNI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.aws.costs import Price, PriceList, total
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_DO_NOT_DISRUPT,
    ANNOTATION_FROZEN_LIMITS,
    ANNOTATION_PROTECTED_BY,
    LABEL_COMPONENT,
    LABEL_POOL,
    LABEL_REGION,
    TAG_NODE_CLAIM,
    TAG_NODE_POOL,
    owned_tag,
)
from gpu_fleet.core.queries import AwsQuery
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.remains import (
    COSTLY_STATES,
    capacity_type,
    left_classes,
    left_in_pools,
    left_instances,
    living_pools,
    tags_of,
    zone_of,
)
from gpu_fleet.core.teardown.scope import doomed_pools, orphans_go

Json = Mapping[str, Any]
Found = Mapping[str, Sequence[Json]]

TAG_OLD_TEMPLATE_CLUSTER = "karpenter.k8s.aws/cluster"
TAG_NODE_CLASS = "karpenter.k8s.aws/ec2nodeclass"
TAG_EKS_CLUSTER = "eks:eks-cluster-name"
TAG_CNI_CLUSTER = "cluster.k8s.amazonaws.com/name"
TAG_CNI_INSTANCE = "node.k8s.amazonaws.com/instance_id"
_FREE = Price(0.0)


@dataclass(frozen=True)
class Leak:
    """One thing that is left.

    :ivar kind: for example ``EC2 instance``.
    :ivar detail: state and remedy.
    :ivar price: per hour; 0 if it is free.
    """

    kind: str
    name: str
    detail: str
    price: Price

    def __str__(self) -> str:
        cost = "" if self.price.usd == 0 else f", {self.price}"
        return f"{self.kind} {self.name} ({self.detail}{cost})"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "detail": self.detail,
            "usdPerHour": self.price.usd,
            "usdPerHourIsAtMost": self.price.at_most,
        }


def aws_queries(cluster: str) -> tuple[AwsQuery, ...]:
    """The queries to AWS; several may belong to one subject (the part of the key before the dot).

    Instances are found by two sets of tags, so that one with an incomplete set is found as well. Other parts of
    EKS use ``eks:eks-cluster-name`` too, so a resource of Karpenter's must have a second tag.
    """
    states = {"Name": "instance-state-name", "Values": list(COSTLY_STATES)}
    owned = {"Name": f"tag:{owned_tag(cluster)}", "Values": ["owned"]}
    karpenters = {"Name": "tag-key", "Values": [TAG_NODE_POOL]}
    ended = {"Name": "instance-state-name", "Values": ["shutting-down", "terminated"]}
    of_cluster = {"Name": f"tag:{TAG_EKS_CLUSTER}", "Values": [cluster]}
    of_a_class = {"Name": "tag-key", "Values": [TAG_NODE_CLASS]}
    available = {"Name": "status", "Values": ["available"]}

    def ec2(key: str, operation: str, path: str, *filters: Mapping[str, Any]) -> AwsQuery:
        return AwsQuery(key, "ec2", operation, {"Filters": list(filters)}, path=path)

    return (
        ec2("instances.owned", "describe_instances", "Reservations.Instances", owned, karpenters, states),
        ec2(
            "instances.claimed",
            "describe_instances",
            "Reservations.Instances",
            of_cluster,
            {"Name": "tag-key", "Values": [TAG_NODE_CLAIM]},
            states,
        ),
        # EC2 lists an instance for about an hour after its end: that shows whose a network interface was.
        ec2("instances.ended", "describe_instances", "Reservations.Instances", owned, karpenters, ended),
        ec2("launch_templates", "describe_launch_templates", "LaunchTemplates", of_cluster, of_a_class),
        ec2(
            "launch_templates.old",
            "describe_launch_templates",
            "LaunchTemplates",
            {"Name": f"tag:{TAG_OLD_TEMPLATE_CLUSTER}", "Values": [cluster]},
        ),
        ec2(
            "network_interfaces.owned", "describe_network_interfaces", "NetworkInterfaces", owned, karpenters, available
        ),
        ec2(
            "network_interfaces.cni",
            "describe_network_interfaces",
            "NetworkInterfaces",
            {"Name": f"tag:{TAG_CNI_CLUSTER}", "Values": [cluster]},
            available,
        ),
        ec2("volumes", "describe_volumes", "Volumes", owned, karpenters, available),
        AwsQuery("instance_profiles", "iam", "list_instance_profiles", {}, path="InstanceProfiles"),
    )


def profile_candidates(profiles: Iterable[Json], region: str, cluster: str) -> list[str]:
    """Names of the instance profiles that Karpenter may have created for this cluster; their tags decide.

    Karpenter names them ``<cluster>_<hash>`` and, since 1.6, puts them under ``/karpenter/<region>/<cluster>/``.
    """
    path = f"/karpenter/{region}/{cluster}/"
    return sorted(
        str(profile["InstanceProfileName"])
        for profile in profiles
        if str(profile.get("Path", "/")).startswith(path)
        or str(profile["InstanceProfileName"]).startswith(f"{cluster}_")
    )


def is_karpenters_profile(tags: Json, region: str, cluster: str) -> bool:
    """Whether an instance profile's tags say that Karpenter created it for this cluster.

    IAM is global, and a cluster of another region may have the same name: Karpenter tags the region.
    """
    ours = tags.get(owned_tag(cluster)) == "owned" and tags.get(LABEL_REGION) == region
    return ours and TAG_NODE_CLASS in tags


# --- one function per subject: (spec, found, prices) -> leaks --------------------------------------------------------


def _living(spec: ClusterSpec, found: Found) -> frozenset[str]:
    """The NodePools that remain: neither being deleted nor ours to remove."""
    pools = found.get("node_pools", ())
    return living_pools(pools, standalone=not orphans_go(spec)) - frozenset(doomed_pools(spec, pools))


def _instances(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:
    unique = {str(i["InstanceId"]): i for key in ("instances.owned", "instances.claimed") for i in found.get(key, ())}
    return [
        Leak(
            "EC2 instance",
            str(instance["InstanceId"]),
            f"{instance.get('InstanceType')}, {instance['State']['Name']}, NodePool "
            f"{tags_of(instance).get(TAG_NODE_POOL, 'none')}; terminate it",
            prices.instance(str(instance.get("InstanceType")), capacity_type(instance), zone_of(instance)),
        )
        for instance in left_instances(unique.values(), _living(spec, found))
    ]


def _launch_templates(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    # Templates have no tag of a NodePool, only of the node class; an existing class still needs its templates.
    classes = {item["metadata"]["name"] for item in found.get("node_classes", ())}
    templates = [*found.get("launch_templates", ()), *found.get("launch_templates.old", ())]
    return [
        Leak("launch template", str(item["LaunchTemplateName"]), "delete it", _FREE)
        for item in templates
        if tags_of(item).get(TAG_NODE_CLASS) not in classes
    ]


def _network_interfaces(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    """Karpenter tags the first interface of its nodes; the CNI tags all others, of every node in the cluster. Of the
    latter only those of instances that Karpenter launched count: the others belong to other node groups.
    """
    ended = {str(instance["InstanceId"]) for instance in found.get("instances.ended", ())}
    made = [item for item in found.get("network_interfaces.cni", ()) if tags_of(item).get(TAG_CNI_INSTANCE) in ended]
    unique = {str(item["NetworkInterfaceId"]): item for item in (*found.get("network_interfaces.owned", ()), *made)}
    return [
        Leak("network interface", name, "attached to nothing; delete it", _FREE)
        for name, item in sorted(unique.items())
        if item.get("Status") == "available"
    ]


def _volumes(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    return [
        Leak(
            "EBS volume",
            str(item["VolumeId"]),
            f"{item.get('Size')} GiB {item.get('VolumeType')}, attached to nothing; delete it",
            prices.volume(str(item.get("VolumeType")), float(item.get("Size") or 0)),
        )
        for item in found.get("volumes", ())
        if item.get("State") == "available"
    ]


def _profiles(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    """``instance_profiles`` has ``{"InstanceProfileName", "Tags"}`` of the profiles that Karpenter created."""
    classes = {item["metadata"]["name"] for item in found.get("node_classes", ())}
    return [
        Leak("instance profile", str(item["InstanceProfileName"]), "remove its role, then delete it", _FREE)
        for item in found.get("instance_profiles", ())
        if tags_of(item).get(TAG_NODE_CLASS) not in classes
    ]


def _node_claims(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    living = _living(spec, found)
    leaks = []
    for claim in left_in_pools(found.get("node_claims", ()), living):
        labels = claim["metadata"].get("labels") or {}
        kind = str(labels.get("node.kubernetes.io/instance-type", "unknown"))
        detail = f"{kind}, provider id {(claim.get('status') or {}).get('providerID', 'none')}; delete it"
        leaks.append(Leak("NodeClaim", str(claim["metadata"]["name"]), detail, _FREE))
    return leaks


def _nodes(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    living = _living(spec, found)
    return [
        Leak(
            "node", str(node["metadata"]["name"]), f"{(node.get('spec') or {}).get('providerID', '')}; delete it", _FREE
        )
        for node in left_in_pools(found.get("nodes", ()), living)
    ]


def _node_pools(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    pools = found.get("node_pools", ())
    doomed = frozenset(doomed_pools(spec, pools))
    leaks = []
    for pool in pools:
        name = str(pool["metadata"]["name"])
        if name in doomed:
            leaks.append(Leak("NodePool", name, "would launch nodes again; delete it", _FREE))
        elif ANNOTATION_FROZEN_LIMITS in (pool["metadata"].get("annotations") or {}):
            leaks.append(Leak("annotation", f"{ANNOTATION_FROZEN_LIMITS} on NodePool {name}", "remove it", _FREE))
    return leaks


def _node_classes(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    kept = [pool.name for pool in spec.node_pools if not pool.manage]
    return [
        Leak("EC2NodeClass", str(item["metadata"]["name"]), "delete it while Karpenter runs", _FREE)
        for item in left_classes(found.get("node_classes", ()), spec.name, kept)
    ]


def _own_pods(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    """Placeholders, probes and pods of ``capacity.hold``: each would buy a GPU node as soon as Karpenter is back.

    Those of a kept pool remain with its nodes: the freeze does not delete them, and held capacity is intended.
    """
    kept = [pool.name for pool in spec.node_pools if not pool.manage]
    leaks = []
    for pod in found.get("own_pods", ()):
        labels = pod["metadata"].get("labels") or {}
        if labels.get(LABEL_POOL) not in kept:
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            leaks.append(Leak(f"{labels.get(LABEL_COMPONENT)} pod", name, "may buy a node; delete it", _FREE))
    return leaks


def _annotations(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:  # noqa: ARG001
    """Nodes that remain and that we still protect from consolidation: they would cost money without end."""
    leftover = {id(node) for node in left_in_pools(found.get("nodes", ()), _living(spec, found))}
    return [
        Leak("annotation", f"{ANNOTATION_DO_NOT_DISRUPT} on node {node['metadata']['name']}", "remove it", _FREE)
        for node in found.get("nodes", ())
        if id(node) not in leftover and ANNOTATION_PROTECTED_BY in (node["metadata"].get("annotations") or {})
    ]


Check = Callable[[ClusterSpec, Found, PriceList], list[Leak]]

#: The most expensive first.
CHECKS: tuple[Check, ...] = (
    _instances,
    _volumes,
    _node_claims,
    _nodes,
    _node_pools,
    _own_pods,
    _node_classes,
    _network_interfaces,
    _launch_templates,
    _profiles,
    _annotations,
)


def find_leaks(spec: ClusterSpec, found: Found, prices: PriceList) -> list[Leak]:
    """Everything that is left, the most expensive first.

    :param found: what was observed: keys of :func:`aws_queries`, and ``node_pools``, ``node_claims``, ``nodes``,
        ``node_classes``, ``own_pods``.
    """
    return [leak for check in CHECKS for leak in check(spec, found, prices)]


def leak_message(cluster: str, leaks: Sequence[Leak], prices: PriceList, unread: str = "", unchecked: str = "") -> str:
    """Each leak with its price, and the sum.

    :param unread: why the objects of the cluster could not be read.
    :param unchecked: what AWS did not allow us to list, in words; more may be left of it.
    """
    lines = "".join(f"\n  - {leak}" for leak in leaks)
    cost = total(leak.price for leak in leaks)
    found = f"cluster {cluster}: {len(leaks)} things are left, {cost} together:{lines}\n{prices.describe(cost)}"
    if unchecked:
        found += f"\nThere may be more: {unchecked}"
    return found + (
        f"\nThe cluster could not be read ({unread}), so the list includes what belongs to NodePools that remain"
        if unread
        else ""
    )
