"""What EC2 would refuse when Karpenter asks for the nodes that the pools want. Pure.

To Karpenter all of it is a lack of capacity, and it keeps trying, so preflight checks it before. Only what is certain
counts as missing: a quota that is too small for the wanted nodes even if nothing else counted against it, a type that
no zone of the subnets offers, subnets with fewer addresses than missing nodes. Other instances of the account,
addresses for pods and capacity itself are named by the wait for capacity (:mod:`gpu_fleet.core.aws.launch_errors`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import labels_of
from gpu_fleet.core.preflight.facts import Object, Prerequisite, State, Unseen, unknown
from gpu_fleet.core.spec import ClusterSpec, NodePool

#: Quotas of vCPUs in Service Quotas, service ``ec2``, for families with NVIDIA GPUs (AWS General Reference, 'Amazon EC2
#: endpoints and quotas'): family letters, generations (empty: any), capacity type -> code.
_QUOTAS = (
    (("g", "vt"), (), "on-demand", "L-DB2E81BA"),
    (("p",), (), "on-demand", "L-417A185B"),
    (("g", "vt"), (), "spot", "L-3819A6DF"),
    (("p",), ("2", "3", "4"), "spot", "L-7212CCBC"),
    (("p",), ("5",), "spot", "L-C4BD4855"),
)
_FAMILY = re.compile(r"([a-z]+)([0-9]+)")
_NOT_ASKED = Unseen("there was no answer")


@dataclass(frozen=True)
class Limits:
    """What was found; ``Unseen`` where looking failed, ``None`` where nothing was looked up.

    :ivar subnets: those with the discovery tag, as EC2 describes them.
    :ivar offers: instance type -> zones that offer it.
    :ivar vcpus: instance type -> vCPUs.
    :ivar quotas: quota code -> vCPUs.
    :ivar nodes: all nodes of the cluster.
    """

    subnets: Sequence[Object] | Unseen | None = None
    offers: Mapping[str, Set[str]] | Unseen | None = None
    vcpus: Mapping[str, int] | Unseen | None = None
    quotas: Mapping[str, float | Unseen] = field(default_factory=dict)
    nodes: Sequence[Object] | Unseen | None = None


def quota_of(instance_type: str, capacity_type: str) -> str:
    """The code of the quota that an instance counts against; empty if it is not known.

    A capacity reservation counts against the quota of on-demand instances, used or not (Amazon EC2 User Guide,
    'Capacity Reservation limits'); a Capacity Block against none, see :func:`_quota`.
    """
    capacity_type = "on-demand" if capacity_type == "reserved" else capacity_type
    match = _FAMILY.match(instance_type)
    for families, generations, kind, code in _QUOTAS:
        of_family = match is not None and match[1] in families and (not generations or match[2] in generations)
        if of_family and kind == capacity_type:
            return code
    return ""


def quota_codes(spec: ClusterSpec) -> list[str]:
    """The codes of all quotas that the managed pools need."""
    return sorted({code for pool in _managed(spec) for code in _options(pool) if code})


def judge_limits(spec: ClusterSpec, limits: Limits, selected: Collection[str]) -> list[Prerequisite]:
    """Per managed pool its zones and quotas, and the free addresses of all.

    :param selected: names of the pools that the run is about. Problems of other pools, and of pools that want no node,
        are reported but fail no run.
    """
    asking = [pool for pool in _managed(spec) if pool.wanted_nodes and pool.name in selected]
    found: list[Prerequisite] = []
    for pool in _managed(spec):
        judged = [_zones(pool, limits), *_rungs(pool, limits), _quota(spec, pool, limits)]
        found += judged if pool in asking else [_for_later(each) for each in judged]
    if found:
        found.append(_addresses(asking, limits))
    return found


def _for_later(found: Prerequisite) -> Prerequisite:
    if found.state is not State.MISSING:
        return found
    return replace(found, state=State.UNKNOWN, message=f"{found.message}; this run asks for no node of the pool")


def _managed(spec: ClusterSpec) -> list[NodePool]:
    return [pool for pool in spec.node_pools if pool.manage]


def _options(pool: NodePool) -> dict[str, list[str]]:
    """Quota code -> the pool's instance types that count against it; unknown quotas under the empty code."""
    found: dict[str, list[str]] = {}
    for kind in pool.capacity_types:
        for name in pool.instance_types:
            found.setdefault(quota_of(name, kind), []).append(name)
    return found


def _zones(pool: NodePool, limits: Limits) -> Prerequisite:
    name = f"zones of pool {pool.name}"
    for seen in (limits.subnets, limits.offers):
        if seen is None or isinstance(seen, Unseen):
            return unknown(name, seen or _NOT_ASKED)
    zones = _zones_of(limits.subnets)
    if not zones:
        return unknown(name, Unseen("there is no subnet with the discovery tag"))
    offers = limits.offers if isinstance(limits.offers, Mapping) else {}
    offered = {each: sorted(zones & offers.get(each, frozenset())) for each in pool.instance_types}
    if not any(offered.values()):
        elsewhere = sorted({zone for each in pool.instance_types for zone in offers.get(each, frozenset())})
        return Prerequisite(
            name,
            State.MISSING,
            f"no zone of the subnets ({', '.join(sorted(zones))}) offers {', '.join(pool.instance_types)}",
            f"tag subnets of {', '.join(elsewhere)} for discovery, or name other instance types"
            if elsewhere
            else "name other instance types",
        )
    shown = "; ".join(f"{each} in {', '.join(places) or 'none of them'}" for each, places in offered.items())
    return Prerequisite(name, State.MET, shown)


def _rungs(pool: NodePool, limits: Limits) -> Iterator[Prerequisite]:
    """Whether each rung of the pool's ladder has a zone in which it can buy at all: of the subnets, with the type."""
    zones, offers = _zones_of(limits.subnets), limits.offers
    if not pool.capacity.ladder or not zones or not isinstance(offers, Mapping):
        return  # what is not known is told of the pool's zones
    name, problems = f"ladder of pool {pool.name}", []
    for number, rung in enumerate(pool.capacity.ladder, start=1):
        types = rung.instance_types or pool.instance_types
        places = zones & set(rung.zones or zones)
        if not places:
            problems.append(f"rung {number} names {', '.join(rung.zones)}, in which there is no subnet")
        elif not any(places & offers.get(each, frozenset()) for each in types):
            problems.append(f"rung {number}: {', '.join(types)} is not offered in {', '.join(sorted(places))}")
    if problems:
        remedy = f"correct capacity.ladder; the subnets are in {', '.join(sorted(zones))}"
        yield Prerequisite(name, State.MISSING, "; ".join(problems), remedy)
    else:
        yield Prerequisite(name, State.MET, f"each of {len(pool.capacity.ladder)} rung(s) has a zone that offers it")


def _zones_of(subnets: Iterable[Object] | Unseen | None) -> set[str]:
    if subnets is None or isinstance(subnets, Unseen):
        return set()
    return {str(subnet.get("AvailabilityZone", "")) for subnet in subnets}


def _quota(spec: ClusterSpec, pool: NodePool, limits: Limits) -> Prerequisite:
    """Whether the quotas are large enough for the wanted nodes, at least one."""
    name, wanted = f"vCPU quota of pool {pool.name}", max(1, pool.needed_nodes)
    if pool.capacity_block is not None:
        # Amazon EC2 User Guide, 'Capacity Blocks for ML'.
        return Prerequisite(name, State.MET, "instances in a Capacity Block count against no quota")
    if limits.vcpus is None or isinstance(limits.vcpus, Unseen):
        return unknown(name, limits.vcpus or _NOT_ASKED)
    nodes, shown, blind = 0, [], None
    for code, types in sorted(_options(pool).items()):
        quota = limits.quotas.get(code) if code else Unseen("no quota is known for these types and capacity types")
        sizes = [limits.vcpus[each] for each in types if limits.vcpus.get(each)]
        if quota is None or isinstance(quota, Unseen) or not sizes:
            blind = blind or (quota if isinstance(quota, Unseen) else _NOT_ASKED)
            continue
        nodes += int(quota // min(sizes))
        shown.append(f"{code} is {quota:g} vCPUs, a node has at least {min(sizes)}")
    if nodes >= wanted:
        return Prerequisite(name, State.MET, "; ".join(shown))
    if blind is not None:
        return unknown(name, blind)
    code = next(iter(sorted(_options(pool))))
    return Prerequisite(
        name,
        State.MISSING,
        f"the account's quotas hold at most {nodes} node(s), and {wanted} are wanted: {'; '.join(shown)}",
        f"aws service-quotas request-service-quota-increase --region {spec.region} --service-code ec2 --quota-code "
        f"{code} --desired-value VCPUS",
    )


def _addresses(asking: Sequence[NodePool], limits: Limits) -> Prerequisite:
    name = "free addresses in the subnets"
    subnets, nodes = limits.subnets, limits.nodes
    if subnets is None or isinstance(subnets, Unseen):
        return unknown(name, subnets or _NOT_ASKED)
    if not subnets or any(subnet.get("Ipv6Native") for subnet in subnets):
        shown = "they are not limited" if subnets else "there is no subnet with the discovery tag"
        return Prerequisite(name, State.MET, shown)
    free = sum(int(subnet.get("AvailableIpAddressCount") or 0) for subnet in subnets)
    shown = f"{free} in {', '.join(sorted(_zones_of(subnets)))}"
    wanted = sum(pool.wanted_nodes for pool in asking)
    if free >= wanted:
        return Prerequisite(name, State.MET, shown)
    remedy = "add larger subnets with the discovery tag, or free addresses"
    if nodes is None or isinstance(nodes, Unseen):
        message = f"{shown}, {wanted} node(s) are wanted, and how many exist is not known"
        return Prerequisite(name, State.UNKNOWN, message, remedy)
    lacking = sum(max(0, pool.wanted_nodes - _existing(pool, nodes)) for pool in asking)
    if free >= lacking:
        return Prerequisite(name, State.MET, f"{shown}, and {lacking} node(s) are to come")
    return Prerequisite(
        name, State.MISSING, f"{shown}, and {lacking} node(s) are to come, each with an address", remedy
    )


def _existing(pool: NodePool, nodes: Iterable[Object]) -> int:
    return sum(labels_of(dict(node)).get(LABEL_NODE_POOL) == pool.name for node in nodes)
