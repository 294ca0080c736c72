"""What launched nodes need of the account: role, access entry, discovery tags, the role for spot. Pure.

Sources: karpenter.sh/docs/getting-started (role and tags), docs.aws.amazon.com/eks (access entries).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_fleet.core.kubernetes.names import DISCOVERY_TAG
from gpu_fleet.core.preflight.facts import SHOWN, Facts, Object, Prerequisite, State, Unseen, mapping, met, unknown
from gpu_fleet.core.preflight.network import Kind, by_tag_alone, filters_of, in_words
from gpu_fleet.core.spec import ClusterSpec

#: The role with which EC2 manages spot requests; one per account (karpenter.sh/docs/troubleshooting,
#: 'Missing Service Linked Role').
SPOT_ROLE = "AWSServiceRoleForEC2Spot"
#: The type of access entry that lets EC2 instances with Linux join (Amazon EKS API, CreateAccessEntry ``type``).
NODE_ENTRY_TYPE = "EC2_LINUX"


def makes_nodes(spec: ClusterSpec) -> bool:
    """Whether the package writes an EC2NodeClass, whose role and tags have to exist."""
    return any(pool.manage for pool in spec.node_pools)


def buys_spot(spec: ClusterSpec) -> bool:
    """Whether a pool may launch spot instances."""
    return any(pool.manage and "spot" in pool.capacity_types for pool in spec.node_pools)


def access_entry(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    """Whether EKS admits nodes that are launched with the spec's role."""
    name, role, mode = "access entry of the node role", spec.node_class.role, facts.authentication_mode
    if isinstance(mode, Unseen):
        return unknown(name, mode)
    if mode == "CONFIG_MAP":
        return Prerequisite(
            name,
            State.UNKNOWN,
            "the cluster's authentication mode is CONFIG_MAP, and ConfigMap kube-system/aws-auth is not checked",
            f"make sure that aws-auth maps role {role} to the groups system:bootstrappers and system:nodes, or no new "
            "node can join",
        )
    entries = facts.entries
    if entries is None or isinstance(entries, Unseen):
        return unknown(name, entries or Unseen("there was no answer"))
    for arn, kind in entries.items():
        if kind == NODE_ENTRY_TYPE:
            return met(name, f"{arn} has one of type {kind}")
    create = (
        f"aws eks create-access-entry --cluster-name {spec.cluster.name} --type {NODE_ENTRY_TYPE} "
        f"--principal-arn {next(iter(entries), f'ARN_OF_{role}')}"
    )
    if entries:
        kinds = ", ".join(sorted(set(entries.values())))
        return Prerequisite(
            name,
            State.MISSING,
            f"the entry of {role} is of type {kinds}, with which no node can join",
            f"delete it and create it again: {create}",
        )
    if mode == "API_AND_CONFIG_MAP":
        return Prerequisite(
            name,
            State.UNKNOWN,
            f"{role} has none; aws-auth, which is not checked, may map it instead (mode API_AND_CONFIG_MAP)",
            f"to be sure: {create}",
        )
    return Prerequisite(name, State.MISSING, f"{role} has none, so no node could join the cluster", create)


def node_role(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    """Whether the node role exists and EC2 may assume it."""
    name, role, wanted = "node role", facts.node_role, spec.node_class.role
    if role is None or isinstance(role, Unseen):
        return unknown(name, role or Unseen("there was no answer"))
    if not role:
        return Prerequisite(
            name,
            State.MISSING,
            f"there is no IAM role {wanted}",
            "correct nodeClass.role, or create it (karpenter.sh/docs/getting-started, KarpenterNodeRole)",
        )
    trusted = _services(role.get("AssumeRolePolicyDocument"))
    if trusted is not None and not any(service.startswith("ec2.") for service in trusted):
        return Prerequisite(
            name,
            State.MISSING,
            f"the trust policy of {wanted} does not let EC2 assume it, so no instance could use it",
            "allow sts:AssumeRole to the service ec2.amazonaws.com in its trust policy",
        )
    return met(name, f"{wanted} exists")


def _services(policy: Any) -> list[str] | None:
    """The services that a trust policy names; ``None`` if it does not list services in a simple way."""
    if not isinstance(policy, Mapping):
        return None
    statements = policy.get("Statement") or []
    found: list[str] = []
    for statement in [statements] if isinstance(statements, Mapping) else statements:
        principal = mapping(statement).get("Principal")
        services = mapping(principal).get("Service")
        if principal == "*":
            return None
        found += [services] if isinstance(services, str) else [str(service) for service in services or ()]
    return found


def discovery(spec: ClusterSpec, what: Kind, found: Sequence[str] | Unseen | None) -> Prerequisite:
    """Whether subnets or security groups carry the discovery tag, or are otherwise found as the node class says."""
    by_tag = by_tag_alone(spec, what)
    name = f"{what} with the discovery tag" if by_tag else f"{what} of the nodes"
    tag = f"{DISCOVERY_TAG}={spec.node_class.discovery_tag}"
    if found is None or isinstance(found, Unseen):
        return unknown(name, found or Unseen("there was no answer"))
    if not found and not by_tag:
        field = "subnets" if what == "subnet" else "securityGroups"
        return Prerequisite(
            name,
            State.MISSING,
            f"no {what} of {spec.region} is selected by {in_words(filters_of(spec, what))}",
            f"correct nodeClass.{field}",
        )
    if not found:
        return Prerequisite(
            name,
            State.MISSING,
            f"no {what} of {spec.region} has the tag {tag}",
            f"correct nodeClass.discoveryTag, or tag them: aws ec2 create-tags --tags Key={DISCOVERY_TAG},"
            f"Value={spec.node_class.discovery_tag} --resources ID…",
        )
    return met(name, f"{len(found)} of {spec.region}: {', '.join(sorted(found)[:SHOWN])}")


def subnet_ids(subnets: Sequence[Object] | Unseen | None) -> Sequence[str] | Unseen | None:
    """The ids of subnets, unless they could not be looked up."""
    if subnets is None or isinstance(subnets, Unseen):
        return subnets
    return [str(subnet["SubnetId"]) for subnet in subnets]


def spot_role(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    """Whether the account has the service-linked role for spot instances."""
    name, role = "service-linked role for spot", facts.spot_role
    create = "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
    if role is None or isinstance(role, Unseen):
        return unknown(name, role or Unseen("there was no answer"))
    if not role:
        spot = ", ".join(pool.name for pool in spec.node_pools if pool.manage and "spot" in pool.capacity_types)
        return Prerequisite(
            name, State.MISSING, f"the account has no {SPOT_ROLE}, so pool {spot} could launch no spot nodes", create
        )
    return met(name, f"{SPOT_ROLE} exists")
