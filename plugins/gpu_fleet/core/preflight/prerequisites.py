"""What nodes and a managed Karpenter need of the account and the cluster, and would show only minutes later. Pure.

Each prerequisite is met, missing, coming or unknown. What could not be looked at is unknown: neither a failure, since
the identity may rightly lack the permission, nor a pass. What is coming needs nothing but time: nodes that still join.
Sources: karpenter.sh/docs/getting-started (roles, queue, tags), docs.aws.amazon.com/eks (access entries, pod identity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.names import DISCOVERY_TAG, KARPENTER_RELEASE
from gpu_fleet.core.preflight.karpenter_nodes import Placement, coming, faults
from gpu_fleet.core.spec import ClusterSpec

Object = Mapping[str, Any]

#: The role with which EC2 manages spot requests; one per account (karpenter.sh/docs/troubleshooting,
#: 'Missing Service Linked Role').
SPOT_ROLE = "AWSServiceRoleForEC2Spot"
IRSA_ANNOTATION = "eks.amazonaws.com/role-arn"
POD_IDENTITY_ADDON = "eks-pod-identity-agent"
#: The kind of access entry that lets EC2 instances with Linux join (Amazon EKS API, CreateAccessEntry ``type``).
NODE_ENTRY_TYPE = "EC2_LINUX"
_NODES_SHOWN = 10


class State(StrEnum):
    MET = "met"
    MISSING = "missing"
    COMING = "coming"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prerequisite:
    """One judgement.

    :ivar name: in words, ``access entry of the node role``.
    :ivar remedy: what to create, or which permission to grant; empty if it is met.
    """

    name: str
    state: State
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "state": str(self.state), "message": self.message, "remedy": self.remedy}


@dataclass(frozen=True)
class Unseen:
    """Something that could not be looked at.

    :ivar permission: the missing IAM action or Kubernetes verb, if that is the reason.
    """

    why: str
    permission: str = ""


@dataclass(frozen=True)
class Facts:
    """What was found; ``Unseen`` where nobody could look, ``None`` where nobody had to.

    :ivar authentication_mode: of the EKS cluster: ``API``, ``API_AND_CONFIG_MAP`` or ``CONFIG_MAP``.
    :ivar entries: access entries of the node role: ARN -> type.
    :ivar node_role: the role as IAM describes it, empty if there is none; ``spot_role`` likewise.
    :ivar subnets: the subnets with the discovery tag, as EC2 describes them.
    :ivar security_groups: ids of the security groups with that tag.
    :ivar queue: whether the interruption queue exists.
    :ivar associations: pod identity associations of the controller's service account.
    :ivar addons: names of the cluster's add-ons.
    :ivar service_account: the controller's service account where the chart does not make it, empty if there is none.
    :ivar nodes: all nodes of the cluster.
    :ivar fargate_profiles: names; looked up only when nodes are short.
    :ivar node_groups: EKS managed node groups; likewise.
    """

    authentication_mode: str | Unseen = "API"
    entries: Mapping[str, str] | Unseen | None = None
    node_role: Object | Unseen | None = None
    spot_role: Object | Unseen | None = None
    subnets: Sequence[Object] | Unseen | None = None
    security_groups: Sequence[str] | Unseen | None = None
    queue: bool | Unseen | None = None
    associations: Sequence[Object] | Unseen | None = None
    addons: Sequence[str] | Unseen | None = None
    service_account: Object | Unseen | None = None
    nodes: Sequence[Object] | Unseen | None = None
    fargate_profiles: Sequence[str] | Unseen | None = None
    node_groups: Sequence[Object] | Unseen | None = None


def makes_nodes(spec: ClusterSpec) -> bool:
    """Whether the package writes an EC2NodeClass, whose role and tags have to exist."""
    return any(pool.manage for pool in spec.node_pools)


def buys_spot(spec: ClusterSpec) -> bool:
    return any(pool.manage and "spot" in pool.capacity_types for pool in spec.node_pools)


# --- the controller, as the chart's values make it -------------------------------------------------------------------
def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def service_account_name(spec: ClusterSpec) -> str:
    """Of the controller (chart: ``karpenter.serviceAccountName``)."""
    values = spec.karpenter.values
    account = _mapping(values.get("serviceAccount"))
    if account.get("create") is False:
        return str(account.get("name") or "default")
    return str(account.get("name") or values.get("fullnameOverride") or KARPENTER_RELEASE)


def makes_service_account(spec: ClusterSpec) -> bool:
    return _mapping(spec.karpenter.values.get("serviceAccount")).get("create") is not False


def _irsa_role(spec: ClusterSpec, facts: Facts) -> str:
    """The role that an annotation of the service account names: of the values, or of the account that others made."""
    annotations = _mapping(_mapping(spec.karpenter.values.get("serviceAccount")).get("annotations"))
    if not makes_service_account(spec) and isinstance(facts.service_account, Mapping):
        annotations = _mapping(_mapping(facts.service_account.get("metadata")).get("annotations"))
    return str(annotations.get(IRSA_ANNOTATION) or "")


def _has_own_credentials(spec: ClusterSpec) -> bool:
    """Whether the values hand the controller something that may be credentials."""
    controller = _mapping(spec.karpenter.values.get("controller"))
    entries = [entry.get("name") for entry in controller.get("env") or () if isinstance(entry, Mapping)]
    return bool(controller.get("envFrom")) or any(str(name).startswith("AWS_") for name in entries)


# --- judgements ------------------------------------------------------------------------------------------------------
def unknown(name: str, unseen: Unseen, also: str = "") -> Prerequisite:
    """Nobody could look: what would have to be granted, or that a person has to."""
    remedy = f"grant {unseen.permission} to have it checked" if unseen.permission else "check it yourself"
    return Prerequisite(name, State.UNKNOWN, f"not looked at: {unseen.why}", f"{remedy}{also}")


def _met(name: str, message: str) -> Prerequisite:
    return Prerequisite(name, State.MET, message)


def access_entry(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    """Whether EKS lets the nodes in that are launched with the spec's role."""
    name, role, mode = "access entry of the node role", spec.node_class.role, facts.authentication_mode
    if isinstance(mode, Unseen):
        return unknown(name, mode)
    if mode == "CONFIG_MAP":
        return Prerequisite(
            name,
            State.UNKNOWN,
            "the cluster's authentication mode is CONFIG_MAP, and ConfigMap kube-system/aws-auth is not looked at",
            f"see to it that aws-auth maps role {role} to the groups system:bootstrappers and system:nodes, or no new "
            "node can join",
        )
    entries = facts.entries
    if entries is None or isinstance(entries, Unseen):
        return unknown(name, entries or Unseen("there was no answer"))
    for arn, kind in entries.items():
        if kind == NODE_ENTRY_TYPE:
            return _met(name, f"{arn} has one of type {kind}")
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
            f"delete it and create it anew: {create}",
        )
    if mode == "API_AND_CONFIG_MAP":
        return Prerequisite(
            name,
            State.UNKNOWN,
            f"{role} has none; aws-auth, which is not looked at, may map it instead (mode API_AND_CONFIG_MAP)",
            f"to be sure: {create}",
        )
    return Prerequisite(name, State.MISSING, f"{role} has none, so no node could join the cluster", create)


def _role(spec: ClusterSpec, facts: Facts) -> Prerequisite:
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
    return _met(name, f"{wanted} exists")


def _services(policy: Any) -> list[str] | None:
    """Services that a trust policy names; ``None`` if it cannot be read so simply."""
    if not isinstance(policy, Mapping):
        return None
    statements = policy.get("Statement") or []
    found: list[str] = []
    for statement in [statements] if isinstance(statements, Mapping) else statements:
        principal = _mapping(statement).get("Principal")
        services = _mapping(principal).get("Service")
        if principal == "*":
            return None
        found += [services] if isinstance(services, str) else [str(service) for service in services or ()]
    return found


def _discovery(spec: ClusterSpec, what: str, found: Sequence[str] | Unseen | None) -> Prerequisite:
    name, tag = f"{what} with the discovery tag", f"{DISCOVERY_TAG}={spec.node_class.discovery_tag}"
    if found is None or isinstance(found, Unseen):
        return unknown(name, found or Unseen("there was no answer"))
    if not found:
        return Prerequisite(
            name,
            State.MISSING,
            f"no {what} of {spec.region} has the tag {tag}",
            f"correct nodeClass.discoveryTag, or tag them: aws ec2 create-tags --tags Key={DISCOVERY_TAG},"
            f"Value={spec.node_class.discovery_tag} --resources ID…",
        )
    return _met(name, f"{len(found)} of {spec.region}: {', '.join(sorted(found)[:_NODES_SHOWN])}")


def _ids(subnets: Sequence[Object] | Unseen | None) -> Sequence[str] | Unseen | None:
    if subnets is None or isinstance(subnets, Unseen):
        return subnets
    return [str(subnet["SubnetId"]) for subnet in subnets]


def _spot_role(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    name, role = "service-linked role for spot", facts.spot_role
    create = "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
    if role is None or isinstance(role, Unseen):
        return unknown(name, role or Unseen("there was no answer"))
    if not role:
        spot = ", ".join(pool.name for pool in spec.node_pools if pool.manage and "spot" in pool.capacity_types)
        return Prerequisite(name, State.MISSING, f"the account has no {SPOT_ROLE}, so {spot} could buy no spot", create)
    return _met(name, f"{SPOT_ROLE} exists")


def _queue(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    name, queue = "interruption queue", spec.karpenter.interruption_queue
    if facts.queue is None or isinstance(facts.queue, Unseen):
        return unknown(name, facts.queue or Unseen("there was no answer"))
    if not facts.queue:
        # v1.14.1 pkg/controllers/controllers.go drops the error of NewSQSProvider.
        return Prerequisite(
            name,
            State.MISSING,
            f"there is no SQS queue {queue} in {spec.region}, so Karpenter would hear of no interruption",
            "correct karpenter.interruptionQueue, or create the queue with its EventBridge rules "
            "(karpenter.sh/docs/getting-started, CloudFormation)",
        )
    return _met(name, f"{queue} exists")


def _identity(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    account = f"{spec.karpenter.namespace}/{service_account_name(spec)}"
    name = "AWS identity of Karpenter's controller"
    role = _irsa_role(spec, facts)
    if role:
        return _met(name, f"ServiceAccount {account} has the annotation {IRSA_ANNOTATION}: {role}")
    found = facts.associations
    if not isinstance(found, Unseen) and found:
        if isinstance(facts.addons, Unseen):
            return unknown(name, facts.addons, f": the association of {account} works only with the add-on")
        if facts.addons is not None and POD_IDENTITY_ADDON not in facts.addons:
            return Prerequisite(
                name,
                State.UNKNOWN,
                f"{account} has a pod identity association, but the cluster has no add-on {POD_IDENTITY_ADDON}, and "
                "whether its agent was installed otherwise is not looked at",
                f"aws eks create-addon --cluster-name {spec.cluster.name} --addon-name {POD_IDENTITY_ADDON}",
            )
        return _met(name, f"ServiceAccount {account} has a pod identity association")
    if _has_own_credentials(spec):
        return Prerequisite(
            name,
            State.UNKNOWN,
            "karpenter.values.controller gives it environment that may hold credentials, which is not looked at",
            "check it yourself",
        )
    if found is None or isinstance(found, Unseen):
        return unknown(name, found or Unseen("there was no answer"))
    if not makes_service_account(spec) and isinstance(facts.service_account, Unseen):
        return unknown(name, facts.service_account, f": ServiceAccount {account} may be annotated for IRSA")
    return Prerequisite(
        name,
        State.MISSING,
        f"ServiceAccount {account} has neither a pod identity association nor the annotation {IRSA_ANNOTATION}",
        f"aws eks create-pod-identity-association --cluster-name {spec.cluster.name} --namespace "
        f"{spec.karpenter.namespace} --service-account {service_account_name(spec)} --role-arn ROLE, or set "
        "karpenter.values.serviceAccount.annotations",
    )


def _nodes(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    name, wanted = "nodes for Karpenter itself", spec.karpenter.replicas
    if facts.nodes is None or isinstance(facts.nodes, Unseen):
        return unknown(name, facts.nodes or Unseen("there was no answer"))
    placement = Placement.of(spec)
    usable = placement.usable(facts.nodes)
    if len(usable) >= wanted:
        return _met(name, f"{len(usable)} can run it: {', '.join(usable[:_NODES_SHOWN])}")
    others = [f"{node['metadata']['name']} {why}" for node in facts.nodes if (why := placement.why_not(node))]
    if len(others) > _NODES_SHOWN:
        others = [*others[:_NODES_SHOWN], f"{len(others) - _NODES_SHOWN} more"]
    message = (
        f"its {wanted} replicas need {wanted} schedulable nodes that are not Karpenter's own, never two on one node; "
    )
    message += f"there are {len(usable)}" if usable else "there is none"
    message += f" ({'; '.join(others)})" if others else ""
    remedy = f"add a managed node group of {wanted} nodes, or lower karpenter.replicas"
    if spec.karpenter.values.get("affinity", {}) != {}:
        return Prerequisite(name, State.UNKNOWN, f"{message}; karpenter.values.affinity is not judged", remedy)
    profiles = facts.fargate_profiles
    if isinstance(profiles, Unseen):
        return Prerequisite(
            name, State.UNKNOWN, f"{message}; Fargate profiles were not looked at: {profiles.why}", remedy
        )
    if profiles:
        return Prerequisite(
            name, State.UNKNOWN, f"{message}; Fargate profile {', '.join(profiles)} may run it instead", remedy
        )
    groups = facts.node_groups
    if isinstance(groups, Unseen):
        return Prerequisite(name, State.MISSING, f"{message}; node groups were not looked at: {groups.why}", remedy)
    if on_the_way := coming(placement, facts.nodes, groups or ()):
        return Prerequisite(name, State.COMING, f"{message}; {'; '.join(map(str, on_the_way))}")
    if found := faults(groups or ()):
        message += f"; {'; '.join(found)}"
    return Prerequisite(name, State.MISSING, message, remedy)


def judge(spec: ClusterSpec, facts: Facts) -> list[Prerequisite]:
    """Every prerequisite that this spec has; those of things that others manage are left out."""
    found: list[Prerequisite] = []
    if makes_nodes(spec):
        found += [
            _role(spec, facts),
            access_entry(spec, facts),
            _discovery(spec, "subnet", _ids(facts.subnets)),
            _discovery(spec, "security group", facts.security_groups),
        ]
    if buys_spot(spec):
        found.append(_spot_role(spec, facts))
    if spec.karpenter.manage:
        found.append(_identity(spec, facts))
        if spec.karpenter.interruption_queue:
            found.append(_queue(spec, facts))
        found.append(_nodes(spec, facts))
    return found
