"""What a managed Karpenter needs of the account and the cluster: an identity, its queue, nodes to run on. Pure.

Sources: karpenter.sh/docs/getting-started (roles and queue), docs.aws.amazon.com/eks (pod identity).
"""

from __future__ import annotations

from collections.abc import Mapping

from gpu_fleet.core.kubernetes.names import KARPENTER_RELEASE
from gpu_fleet.core.preflight.facts import SHOWN, Facts, Prerequisite, State, Unseen, mapping, met, unknown
from gpu_fleet.core.preflight.karpenter_nodes import Placement, coming, faults
from gpu_fleet.core.spec import ClusterSpec

IRSA_ANNOTATION = "eks.amazonaws.com/role-arn"
POD_IDENTITY_ADDON = "eks-pod-identity-agent"


# --- the controller, as the chart's values make it -------------------------------------------------------------------
def service_account_name(spec: ClusterSpec) -> str:
    """The name of the controller's service account (chart: ``karpenter.serviceAccountName``)."""
    values = spec.karpenter.values
    account = mapping(values.get("serviceAccount"))
    if account.get("create") is False:
        return str(account.get("name") or "default")
    return str(account.get("name") or values.get("fullnameOverride") or KARPENTER_RELEASE)


def makes_service_account(spec: ClusterSpec) -> bool:
    """Whether the chart creates the controller's service account."""
    return mapping(spec.karpenter.values.get("serviceAccount")).get("create") is not False


def service_account_role(spec: ClusterSpec, facts: Facts) -> str:
    """ARN of the role that annotates the service account: from the values, or from an account that others created."""
    annotations = mapping(mapping(spec.karpenter.values.get("serviceAccount")).get("annotations"))
    if not makes_service_account(spec) and isinstance(facts.service_account, Mapping):
        annotations = mapping(mapping(facts.service_account.get("metadata")).get("annotations"))
    return str(annotations.get(IRSA_ANNOTATION) or "")


def _has_own_credentials(spec: ClusterSpec) -> bool:
    """Whether the values give the controller environment that may hold credentials."""
    controller = mapping(spec.karpenter.values.get("controller"))
    entries = [entry.get("name") for entry in controller.get("env") or () if isinstance(entry, Mapping)]
    return bool(controller.get("envFrom")) or any(str(name).startswith("AWS_") for name in entries)


# --- judgements ------------------------------------------------------------------------------------------------------
def queue(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    """Whether the interruption queue exists."""
    name, wanted = "interruption queue", spec.karpenter.interruption_queue
    if facts.queue is None or isinstance(facts.queue, Unseen):
        return unknown(name, facts.queue or Unseen("there was no answer"))
    if not facts.queue:
        # v1.14.1 pkg/controllers/controllers.go drops the error of NewSQSProvider.
        return Prerequisite(
            name,
            State.MISSING,
            f"there is no SQS queue {wanted} in {spec.region}, so Karpenter would receive no interruption notices",
            "correct karpenter.interruptionQueue, or create the queue with its EventBridge rules "
            "(karpenter.sh/docs/getting-started, CloudFormation)",
        )
    return met(name, f"{wanted} exists")


def identity(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    """Whether Karpenter's controller has an AWS identity: IRSA, pod identity, or credentials of its own."""
    account = f"{spec.karpenter.namespace}/{service_account_name(spec)}"
    name = "AWS identity of Karpenter's controller"
    role = service_account_role(spec, facts)
    if role:
        return met(name, f"ServiceAccount {account} has the annotation {IRSA_ANNOTATION}: {role}")
    found = facts.associations
    if not isinstance(found, Unseen) and found:
        if isinstance(facts.addons, Unseen):
            return unknown(name, facts.addons, f": the association of {account} works only with the add-on")
        if facts.addons is not None and POD_IDENTITY_ADDON not in facts.addons:
            return Prerequisite(
                name,
                State.UNKNOWN,
                f"{account} has a pod identity association, but the cluster has no add-on {POD_IDENTITY_ADDON}, and "
                "whether its agent was installed in another way is not checked",
                f"aws eks create-addon --cluster-name {spec.cluster.name} --addon-name {POD_IDENTITY_ADDON}",
            )
        return met(name, f"ServiceAccount {account} has a pod identity association")
    if _has_own_credentials(spec):
        return Prerequisite(
            name,
            State.UNKNOWN,
            "karpenter.values.controller gives it environment that may hold credentials, which is not checked",
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


def karpenter_nodes(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    """Whether enough nodes can run Karpenter's replicas, or are joining."""
    name, wanted = "nodes for Karpenter itself", spec.karpenter.replicas
    if facts.nodes is None or isinstance(facts.nodes, Unseen):
        return unknown(name, facts.nodes or Unseen("there was no answer"))
    placement = Placement.of(spec)
    usable = placement.usable(facts.nodes)
    if len(usable) >= wanted:
        return met(name, f"{len(usable)} can run it: {', '.join(usable[:SHOWN])}")
    unusable = [f"{node['metadata']['name']} {why}" for node in facts.nodes if (why := placement.why_not(node))]
    if len(unusable) > SHOWN:
        unusable = [*unusable[:SHOWN], f"{len(unusable) - SHOWN} more"]
    message = (
        f"its {wanted} replicas need {wanted} schedulable nodes that are not Karpenter's own, never two on one node; "
    )
    message += f"there are {len(usable)}" if usable else "there is none"
    message += f" ({'; '.join(unusable)})" if unusable else ""
    remedy = f"add a managed node group of {wanted} nodes, or lower karpenter.replicas"
    if spec.karpenter.values.get("affinity", {}) != {}:
        return Prerequisite(name, State.UNKNOWN, f"{message}; karpenter.values.affinity is not evaluated", remedy)
    profiles = facts.fargate_profiles
    if isinstance(profiles, Unseen):
        return Prerequisite(
            name, State.UNKNOWN, f"{message}; Fargate profiles were not checked: {profiles.why}", remedy
        )
    if profiles:
        return Prerequisite(
            name, State.UNKNOWN, f"{message}; Fargate profile {', '.join(profiles)} may run it instead", remedy
        )
    groups = facts.node_groups
    if isinstance(groups, Unseen):
        return Prerequisite(name, State.MISSING, f"{message}; node groups were not checked: {groups.why}", remedy)
    if on_the_way := coming(placement, facts.nodes, groups or ()):
        return Prerequisite(name, State.COMING, f"{message}; {'; '.join(map(str, on_the_way))}")
    if found := faults(groups or ()):
        message += f"; {'; '.join(found)}"
    return Prerequisite(name, State.MISSING, message, remedy)
