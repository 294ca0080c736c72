"""By what the pools' EC2NodeClasses find subnets and security groups. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from gpu_fleet.core.kubernetes.names import DISCOVERY_TAG
from gpu_fleet.core.spec import ClusterSpec

Kind = Literal["subnet", "security group"]
Filters = list[dict[str, Any]]
#: Names of EC2's filters (Amazon EC2 API, DescribeSubnets and DescribeSecurityGroups).
_ID: Mapping[Kind, str] = {"subnet": "subnet-id", "security group": "group-id"}


def by_tag_alone(spec: ClusterSpec, kind: Kind) -> bool:
    """Whether every pool finds them by the discovery tag."""
    return not any(_terms(spec, kind))


def filters_of(spec: ClusterSpec, kind: Kind) -> list[Filters]:
    """EC2's filters, one list per selector term of any pool; what they find together is what the pools may use."""
    tagged = [{"Name": f"tag:{DISCOVERY_TAG}", "Values": [spec.node_class.discovery_tag]}]
    found: list[Filters] = []
    for pool in spec.node_pools:
        if not pool.manage:
            continue
        node_class = spec.node_class_of(pool)
        terms = node_class.subnets if kind == "subnet" else node_class.security_groups
        for filters in [tagged] if terms is None else [_filters(kind, term.to_manifest()) for term in terms]:
            if filters not in found:
                found.append(filters)
    return found


def _terms(spec: ClusterSpec, kind: Kind) -> Iterator[Any]:
    for pool in spec.node_pools:
        if pool.manage:
            node_class = spec.node_class_of(pool)
            yield from (node_class.subnets if kind == "subnet" else node_class.security_groups) or ()


def _filters(kind: Kind, term: Mapping[str, Any]) -> Filters:
    if "id" in term:
        return [{"Name": _ID[kind], "Values": [term["id"]]}]
    if "name" in term:
        return [{"Name": "group-name", "Values": [term["name"]]}]
    return [
        {"Name": "tag-key", "Values": [key]} if value == "*" else {"Name": f"tag:{key}", "Values": [value]}
        for key, value in term["tags"].items()
    ]


def in_words(filters: Sequence[Filters]) -> str:
    """``subnet-id subnet-1, or tag:team ml``."""
    return ", or ".join(
        " and ".join(f"{each['Name']} {', '.join(map(str, each['Values']))}" for each in one) for one in filters
    )
