"""Looks up what nodes and Karpenter need of the account and the cluster; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.aws.hardware import MAX_TYPES_PER_CALL
from gpu_fleet.core.kubernetes.kinds import NODE, SERVICE_ACCOUNT, ObjectRef
from gpu_fleet.core.preflight.controller_prerequisites import makes_service_account, service_account_name
from gpu_fleet.core.preflight.facts import Facts, Unseen
from gpu_fleet.core.preflight.interruption_queue import QueueFacts
from gpu_fleet.core.preflight.karpenter_nodes import Placement
from gpu_fleet.core.preflight.launch_limits import Limits, quota_codes
from gpu_fleet.core.preflight.maintenance import ACTION, concerns, controller_role
from gpu_fleet.core.preflight.network import Filters, Kind, filters_of
from gpu_fleet.core.preflight.node_prerequisites import SPOT_ROLE, buys_spot, makes_nodes
from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.preflight.asking import Asking, Found
from gpu_fleet.operators.preflight.queue_look import QueueLook

if TYPE_CHECKING:
    from gpu_fleet.hooks.aws import AwsSession


class Look(Asking):
    """Looks for everything that a spec needs."""

    def __init__(self, operator: FleetOperator, aws: AwsSession) -> None:
        super().__init__(aws)
        self.spec = operator.spec
        self._access = operator.access

    def facts(self) -> Facts:
        spec = self.spec
        described = self._described()
        if isinstance(described, Unseen) and not described.permission:
            return self._blind(described)
        found: dict[str, Any] = {}
        if makes_nodes(spec):
            found |= self._admission(described)
            found["node_role"] = self._role(spec.node_class.role)
            kinds: tuple[tuple[str, Kind, str, str, str], ...] = (
                ("subnets", "subnet", "DescribeSubnets", "describe_subnets", "Subnets"),
                (
                    "security_groups",
                    "security group",
                    "DescribeSecurityGroups",
                    "describe_security_groups",
                    "SecurityGroups.GroupId",
                ),
            )
            for key, kind, action, operation, path in kinds:
                found[key] = self._selected(filters_of(spec, kind), action, operation, path)
        if buys_spot(spec):
            found["spot_role"] = self._role(SPOT_ROLE)
        if spec.karpenter.manage:
            found |= self._karpenter()
        return Facts(**found)

    def _selected(self, selectors: Sequence[Filters], action: str, operation: str, path: str) -> list[Any] | Unseen:
        """What any of the selectors finds, each once."""
        found: list[Any] = []
        for filters in selectors:
            these = self._list("ec2", action, operation, path, Filters=filters)
            if isinstance(these, Unseen):
                return these
            found += [each for each in these if each not in found]
        return found

    def admission(self) -> Facts:
        """Only the facts that decide whether EKS admits the nodes."""
        return Facts(**self._admission(self._described()))

    def _described(self) -> dict[str, Any] | Unseen:
        return self._ask("eks", "DescribeCluster", "describe_cluster", name=self.spec.cluster.name)

    def _admission(self, described: dict[str, Any] | Unseen) -> dict[str, Any]:
        if isinstance(described, Unseen):
            mode: str | Unseen = described
        else:
            mode = str((described["cluster"].get("accessConfig") or {}).get("authenticationMode") or "CONFIG_MAP")
        return {"authentication_mode": mode, "entries": None if mode == "CONFIG_MAP" else self._entries()}

    def limits(self, facts: Facts) -> Limits:
        """The limits by which EC2 would refuse a launch: one call for the types, one for their zones, one per quota.

        :param facts: of :meth:`facts`; nothing of them is looked up again.
        """
        spec = self.spec
        if not makes_nodes(spec):
            return Limits()
        if facts.subnets is None or isinstance(facts.subnets, Unseen):
            # Without permission for subnets the rest may be readable; without the cluster's description nothing is.
            blind = facts.subnets or Unseen("there was no answer")
            if not blind.permission:
                return Limits(blind, blind, blind, dict.fromkeys(quota_codes(spec), blind), blind)
        types = sorted({name for pool in spec.node_pools if pool.manage for name in pool.instance_types})
        offers: dict[str, set[str]] | Unseen = {name: set() for name in types}
        vcpus: dict[str, int] | Unseen = {}
        for start in range(0, len(types), MAX_TYPES_PER_CALL):
            chunk = types[start : start + MAX_TYPES_PER_CALL]
            found = self._list(
                "ec2",
                "DescribeInstanceTypeOfferings",
                "describe_instance_type_offerings",
                "InstanceTypeOfferings",
                LocationType="availability-zone",
                Filters=[{"Name": "instance-type", "Values": chunk}],
            )
            if isinstance(found, Unseen) or isinstance(offers, Unseen):
                offers = found if isinstance(found, Unseen) else offers
            else:
                for item in found:
                    offers[str(item["InstanceType"])].add(str(item["Location"]))
            filters = [{"Name": "instance-type", "Values": chunk}]
            shown = self._list(
                "ec2", "DescribeInstanceTypes", "describe_instance_types", "InstanceTypes", Filters=filters
            )
            if isinstance(shown, Unseen) or isinstance(vcpus, Unseen):
                vcpus = shown if isinstance(shown, Unseen) else vcpus
            else:
                vcpus |= {str(item["InstanceType"]): int(item["VCpuInfo"]["DefaultVCpus"]) for item in shown}
        quotas: dict[str, float | Unseen] = {}
        for code in quota_codes(spec):
            quota = self._ask(
                "service-quotas", "GetServiceQuota", "get_service_quota", iam="servicequotas", ServiceCode="ec2",
                QuotaCode=code,
            )  # fmt: skip
            quotas[code] = quota if isinstance(quota, Unseen) else float(quota["Quota"]["Value"])
        return Limits(facts.subnets, offers, vcpus, quotas, facts.nodes)

    def _karpenter(self) -> dict[str, Any]:
        spec, cluster = self.spec, self.spec.cluster.name
        namespace, account = spec.karpenter.namespace, service_account_name(spec)
        found: dict[str, Any] = {
            "associations": self._list(
                "eks",
                "ListPodIdentityAssociations",
                "list_pod_identity_associations",
                "associations",
                clusterName=cluster,
                namespace=namespace,
                serviceAccount=account,
            )
        }
        if found["associations"] and not isinstance(found["associations"], Unseen):
            found["addons"] = self._list("eks", "ListAddons", "list_addons", "addons", clusterName=cluster)
        if not makes_service_account(spec):
            found["service_account"] = self._kube(
                "get serviceaccounts", lambda kube: kube.get(ObjectRef(SERVICE_ACCOUNT, account, namespace)) or {}
            )
        if spec.karpenter.interruption_queue:
            queue = self._ask(
                "sqs", "GetQueueUrl", "get_queue_url", absent={}, QueueName=spec.karpenter.interruption_queue
            )
            found["queue"] = queue if isinstance(queue, Unseen) else bool(queue)
        if concerns(spec):
            found["polls_ec2"] = self._polls_ec2(Facts(**found))
        nodes = found["nodes"] = self._kube("list nodes", lambda kube: list(kube.list(NODE)))
        placement = Placement.of(spec)
        if not isinstance(nodes, Unseen) and len(placement.usable(nodes)) < placement.wanted:
            found["node_groups"] = self._node_groups()
            found["fargate_profiles"] = self._list(
                "eks", "ListFargateProfiles", "list_fargate_profiles", "fargateProfileNames", clusterName=cluster
            )
        return found

    def _polls_ec2(self, facts: Facts) -> bool | Unseen | None:
        """Whether the controller's role may ask EC2 for scheduled events, as IAM evaluates its policies."""
        if not facts.associations or isinstance(facts.associations, Unseen):
            described = facts.associations
        else:
            # A list of associations does not say their roles.
            found = self._ask(
                "eks",
                "DescribePodIdentityAssociation",
                "describe_pod_identity_association",
                clusterName=self.spec.cluster.name,
                associationId=str(facts.associations[0].get("associationId")),
            )
            described = found if isinstance(found, Unseen) else [found["association"]]
        role = controller_role(self.spec, replace(facts, associations=described))
        if role is None or isinstance(role, Unseen):
            return role
        answer = self._ask(
            "iam", "SimulatePrincipalPolicy", "simulate_principal_policy", PolicySourceArn=role, ActionNames=[ACTION]
        )
        if isinstance(answer, Unseen):
            return answer
        return any(each.get("EvalDecision") == "allowed" for each in answer.get("EvaluationResults") or ())

    def queue(self, name: str | None) -> QueueFacts:
        """Of the package's own queue for interruptions.

        :param name: ``None`` if the spec names no queue: nothing is looked up.
        """
        return QueueLook(self).facts(name) if name else QueueFacts()

    def node_group_names(self) -> list[str]:
        """Names of the cluster's managed node groups; empty if they cannot be listed."""
        names = self._list("eks", "ListNodegroups", "list_nodegroups", "nodegroups", clusterName=self.spec.cluster.name)
        return [] if isinstance(names, Unseen) else [str(name) for name in names]

    def _node_groups(self) -> list[Mapping[str, Any]] | Unseen:
        cluster = self.spec.cluster.name
        names = self._list("eks", "ListNodegroups", "list_nodegroups", "nodegroups", clusterName=cluster)
        if isinstance(names, Unseen):
            return names
        found: list[Mapping[str, Any]] = []
        for name in names:
            group = self._ask(
                "eks",
                "DescribeNodegroup",
                "describe_nodegroup",
                absent={},
                clusterName=cluster,
                nodegroupName=str(name),
            )
            if isinstance(group, Unseen):
                return group
            if group:
                found.append(group["nodegroup"])
        return found

    def _blind(self, unseen: Unseen) -> Facts:
        unknown: dict[str, Any] = {each.name: unseen for each in fields(Facts)}
        return Facts(**unknown)

    def _entries(self) -> dict[str, str] | Unseen:
        """The node role's access entries, with their types. An ARN may hold a path: the role's name is its end."""
        cluster = self.spec.cluster.name
        arns = self._list("eks", "ListAccessEntries", "list_access_entries", "accessEntries", clusterName=cluster)
        if isinstance(arns, Unseen):
            return arns
        found: dict[str, str] = {}
        for arn in arns:
            if ":role/" in arn and arn.rpartition("/")[2] == self.spec.node_class.role:
                entry = self._ask(
                    "eks",
                    "DescribeAccessEntry",
                    "describe_access_entry",
                    absent={},
                    clusterName=cluster,
                    principalArn=arn,
                )
                if isinstance(entry, Unseen):
                    return entry
                if entry:
                    found[arn] = str(entry["accessEntry"].get("type"))
        return found

    def _role(self, name: str) -> Mapping[str, Any] | Unseen:
        role = self._ask("iam", "GetRole", "get_role", absent={}, RoleName=name)
        return role if isinstance(role, Unseen) else role.get("Role") or {}

    def _kube(self, permission: str, ask: Callable[[Any], Found]) -> Found | Unseen:
        from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

        return self._looked("kubernetes", permission, lambda: ask(KubernetesHook(self._access()).client()))
