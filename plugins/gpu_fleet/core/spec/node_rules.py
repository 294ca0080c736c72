"""Rules between the fields of the node class, and between them and the pool that uses them.

Each is checked on the node class as a pool has it, and reported at the field from which the pool has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from gpu_fleet.core.spec.instances import has_instance_store
from gpu_fleet.core.spec.node_class import Family, NodeClass
from gpu_fleet.core.spec.node_class.bottlerocket import bottlerocket_problems
from gpu_fleet.core.spec.node_class.fast_start import FIRST_RAID, fast_start, older
from gpu_fleet.core.spec.node_class.node_config import al2023_problems
from gpu_fleet.core.spec.problems import Problem
from gpu_fleet.core.spec.sharing import Mps, TimeSlicing
from gpu_fleet.core.spec.types.names import version_tuple

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec
    from gpu_fleet.core.spec.pools import NodePool

#: First Bottlerocket with ``settings.kubelet-device-plugins.nvidia.device-sharing-strategy`` (bottlerocket-os/
#: bottlerocket Release.toml: the migration of v1.25.0; CHANGELOG of the core kit v2.9.0).
FIRST_TIME_SLICING = "1.25.0"
#: First Karpenter whose EC2NodeClass has these fields (aws/karpenter-provider-aws website/content/en/v1.12 and v1.13,
#: concepts/nodeclasses.md).
FIRST_KARPENTER = {
    "network_interfaces": ("networkInterfaces", "1.12"),
    "placement_group": ("placementGroup", "1.12"),
}
FIRST_CONNECTION_TRACKING = "1.13"


class Used(NamedTuple):
    """A pool with the node class that it uses.

    :ivar own: the names of the fields that the pool has of its own.
    """

    place: int
    pool: NodePool
    node_class: NodeClass
    own: frozenset[str]

    def field(self, name: str, path: str) -> str:
        """The field of the cluster file, by its attribute and its path below ``nodeClass``."""
        if name == "ami_alias" and self.pool.ami_alias is not None:
            return f"nodePools[{self.place}].amiAlias"
        return f"nodePools[{self.place}].nodeClass.{path}" if name in self.own else f"nodeClass.{path}"


def used(spec: ClusterSpec) -> Iterator[Used]:
    """The pools for which the package writes an EC2NodeClass."""
    for index, pool in enumerate(spec.node_pools):
        if pool.manage:
            yield Used(index, pool, spec.node_class_of(pool), frozenset(pool.node_class.given))


def _once(spec: ClusterSpec, rule: Callable[[Used], Iterator[Problem]]) -> Iterator[Problem]:
    """The problems of all pools; what several have of the cluster's node class, once."""
    seen: set[Problem] = set()
    for each in used(spec):
        for problem in rule(each):
            if problem not in seen:
                seen.add(problem)
                yield problem


def nodes_find_their_network(spec: ClusterSpec) -> Iterator[Problem]:
    for each in used(spec):
        missing = [
            name
            for name, value in (
                ("subnets", each.node_class.subnets),
                ("securityGroups", each.node_class.security_groups),
            )
            if value is None
        ]
        if missing and each.node_class.discovery_tag is None:
            yield Problem(
                "nodeClass.discoveryTag",
                f"is missing, and pool {each.pool.name} has no {' and no '.join(missing)}",
                f"add it, or give nodeClass.{missing[0]}",
            )
            return


def one_way_to_an_ami(spec: ClusterSpec) -> Iterator[Problem]:
    for each in used(spec):
        if each.pool.ami_alias is not None and "ami" in each.own:
            yield Problem(
                f"nodePools[{each.place}].nodeClass.ami",
                f"pool {each.pool.name} also has amiAlias, and only one of them can select its AMI",
                "remove one",
            )


def volumes_are_possible(spec: ClusterSpec) -> Iterator[Problem]:
    def rule(each: Used) -> Iterator[Problem]:
        node_class = each.node_class
        if node_class.volume is not None and (why := node_class.volume.too_small(node_class.volume_size)):
            yield Problem(each.field("volume", "volume.iops"), why, "raise volumeSize, or lower iops")
        if node_class.os_volume_size is not None and node_class.family is not Family.BOTTLEROCKET:
            yield Problem(
                each.field("os_volume_size", "osVolumeSize"),
                "AL2023 has one volume for operating system and images",
                "remove it; volumeSize is its size",
            )

    yield from _once(spec, rule)


def disks_are_there(spec: ClusterSpec) -> Iterator[Problem]:
    def rule(each: Used) -> Iterator[Problem]:
        if each.node_class.instance_store_policy != "RAID0":
            return
        field = each.field("instance_store_policy", "instanceStorePolicy")
        without = [name for name in each.pool.instance_types if has_instance_store(name) is False]
        if without:
            yield Problem(
                field,
                f"{', '.join(without)} of pool {each.pool.name} has no instance store",
                "choose other instance types, or write none for this pool (nodePools[].nodeClass.instanceStorePolicy)",
            )
        if each.node_class.volume is not None and each.node_class.volume.snapshot is not None:
            yield Problem(
                field,
                f"pool {each.pool.name}: RAID0 hides the images of volume.snapshot",
                "remove one of them",
            )
        if each.node_class.family is Family.BOTTLEROCKET and older(each.node_class.version, FIRST_RAID):
            yield Problem(
                field,
                f"Bottlerocket {each.node_class.version} cannot set up instance store for images",
                f"use {FIRST_RAID} or later",
            )

    yield from _once(spec, rule)


def kubelet_settings_reach_the_node(spec: ClusterSpec) -> Iterator[Problem]:
    """Karpenter drops what Bottlerocket's settings have no place for (pkg/providers/amifamily/bottlerocket.go)."""

    def rule(each: Used) -> Iterator[Problem]:
        kubelet = each.node_class.kubelet
        if kubelet is None or each.node_class.family is not Family.BOTTLEROCKET:
            return
        if kubelet.pods_per_core is not None:
            yield Problem(
                each.field("kubelet", "kubelet.podsPerCore"), "Bottlerocket has no such setting", "use maxPods"
            )
        if len(kubelet.cluster_dns) > 1:
            yield Problem(
                each.field("kubelet", "kubelet.clusterDNS"),
                "Karpenter gives Bottlerocket the first address only",
                "write one",
            )

    yield from _once(spec, rule)


def user_data_is_valid(spec: ClusterSpec) -> Iterator[Problem]:
    def rule(each: Used) -> Iterator[Problem]:
        node_class = each.node_class
        if not node_class.user_data:
            return
        field = each.field("user_data", "userData")
        if node_class.family is Family.BOTTLEROCKET:
            chosen = fast_start(node_class, each.pool.instance_types).parallel
            problems = bottlerocket_problems(node_class.user_data, fast_start=chosen)
        else:
            problems = al2023_problems(node_class.user_data)
        for problem in problems:
            yield Problem(field, f"{node_class.family.value} user data, {problem}", problem.remedy)

    yield from _once(spec, rule)


def karpenter_knows_the_fields(spec: ClusterSpec) -> Iterator[Problem]:
    version = spec.karpenter.chart.version

    def rule(each: Used) -> Iterator[Problem]:
        needed = [(*value, name) for name, value in FIRST_KARPENTER.items() if getattr(each.node_class, name)]
        if "connectionTracking" in (each.node_class.extra or {}):
            needed.append(("extra.connectionTracking", FIRST_CONNECTION_TRACKING, "extra"))
        for path, first, name in needed:
            if version_tuple(version) < version_tuple(first):
                yield Problem(
                    each.field(name, path),
                    f"the EC2NodeClass of Karpenter {version} has no such field",
                    f"use Karpenter {first} or later",
                )

    yield from _once(spec, rule)


def bottlerocket_can_share(spec: ClusterSpec) -> Iterator[Problem]:
    """Bottlerocket's own device plugin serves its nodes, and shares as its settings say."""
    for each in used(spec):
        if each.node_class.family is not Family.BOTTLEROCKET:
            continue
        version, sharing = each.node_class.version, each.pool.sharing
        if isinstance(sharing, TimeSlicing) and older(version, FIRST_TIME_SLICING):
            yield Problem(
                each.field("ami_alias", "amiAlias"),
                f"Bottlerocket {version} cannot share GPUs, as pool {each.pool.name} asks for",
                f"use {FIRST_TIME_SLICING} or later",
            )
        if isinstance(sharing, Mps):
            # Since v1.54.0 Bottlerocket has an MPS control daemon as a service of the host (bottlerocket-os/
            # bottlerocket#4744), whose state no Kubernetes object shows.
            yield Problem(
                f"nodePools[{each.place}].sharing.mode",
                f"the MPS daemon of Bottlerocket is a service of the host, which this package cannot prove (pool "
                f"{each.pool.name})",
                "use timeSlicing, or an al2023 alias",
            )


Rule = Callable[["ClusterSpec"], Iterator[Problem]]
NODE_RULES: tuple[Rule, ...] = (
    nodes_find_their_network,
    one_way_to_an_ami,
    volumes_are_possible,
    disks_are_there,
    kubelet_settings_reach_the_node,
    user_data_is_valid,
    karpenter_knows_the_fields,
    bottlerocket_can_share,
)
