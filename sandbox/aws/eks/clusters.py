"""What moto's EKS lacks, kept in memory; the shim adds it to moto's answers.

Clusters and node groups stay in moto; this adds to a cluster its endpoint and CA, a status that takes time, access
entries, pod identity associations and add-ons (docs.aws.amazon.com/eks/latest/APIReference).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.aws.account import GROUP_ROLE, Account
from sandbox.aws.permissions import absent
from sandbox.faults import FaultBoard
from sandbox.settings import Settings

CLUSTER_ADMIN_POLICY = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
PLATFORM_VERSION = "eks.9"

JsonObject = dict[str, Any]


class EksError(Exception):
    """An error of the EKS API: HTTP status, exception name, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def not_found(message: str) -> EksError:
    return EksError(404, "ResourceNotFoundException", message)


def in_use(message: str) -> EksError:
    return EksError(409, "ResourceInUseException", message)


def invalid(message: str) -> EksError:
    return EksError(400, "InvalidParameterException", message)


@dataclass
class AccessEntry:
    """An IAM principal's way into a cluster."""

    principal_arn: str
    username: str
    groups: list[str]
    type: str
    created: float
    policies: dict[str, JsonObject] = field(default_factory=dict)

    @property
    def kubernetes_groups(self) -> list[str]:
        """Groups of the entry plus what its access policies amount to inside the cluster."""
        admin = CLUSTER_ADMIN_POLICY in self.policies
        return [*self.groups, *(["system:masters"] if admin and "system:masters" not in self.groups else [])]


@dataclass
class ClusterState:
    """What the shim adds to one cluster of moto's."""

    name: str
    region: str
    account: str
    endpoint: str | None = None
    ca_data: str | None = None
    active_at: float = 0.0
    deleting: bool = False
    access_entries: dict[str, AccessEntry] = field(default_factory=dict)
    pod_identities: dict[str, JsonObject] = field(default_factory=dict)
    addons: dict[str, JsonObject] = field(default_factory=dict)

    def arn(self, kind: str, *parts: str) -> str:
        return ":".join(["arn:aws:eks", self.region, self.account, "/".join([kind, self.name, *parts])])

    def status(self, now: float) -> str:
        if self.deleting:
            return "DELETING"
        return "CREATING" if now < self.active_at else "ACTIVE"


def principal(arn: str) -> str:
    """
    The principal that an access entry is made for: of an assumed role's session, the role.

    ``arn:aws:sts::1:assumed-role/R/session`` → ``arn:aws:iam::1:role/R``.
    """
    parts = arn.split(":", 5)
    if len(parts) == 6 and parts[2] == "sts" and parts[5].startswith("assumed-role/"):
        return f"{parts[0]}:{parts[1]}:iam::{parts[4]}:role/{parts[5].split('/')[1]}"
    return arn


def default_username(arn: str) -> str:
    """The user name that EKS gives an entry when the caller gives none."""
    parts = arn.split(":", 5)
    if len(parts) == 6 and parts[5].startswith("role/"):
        role = parts[5].rsplit("/", 1)[1]
        return f"{parts[0]}:{parts[1]}:sts::{parts[4]}:assumed-role/{role}/{{{{SessionName}}}}"
    return arn


class Eks:
    """All clusters' extras. ``now`` is wall-clock seconds."""

    def __init__(self, faults: FaultBoard, now: Callable[[], float] = time.time) -> None:
        self._faults = faults
        self._now = now
        self._clusters: dict[tuple[str, str], ClusterState] = {}

    def add(self, state: ClusterState) -> ClusterState:
        self._clusters[state.region, state.name] = state
        return state

    def remove(self, region: str, name: str) -> None:
        self._clusters.pop((region, name), None)

    def cluster(self, region: str, name: str) -> ClusterState:
        state = self._clusters.get((region, name))
        if state is None:
            raise not_found(f"No cluster found for name: {name}.")
        return state

    def known(self, region: str, name: str) -> ClusterState | None:
        return self._clusters.get((region, name))

    def dress(self, cluster: JsonObject, region: str) -> JsonObject:
        """A cluster as moto describes it → as EKS does."""
        state = self.known(region, cluster["name"])
        if state is None:
            return cluster
        dressed = dict(cluster)
        fault = self._faults.active("eks-status")
        dressed["status"] = str(fault["status"]) if fault else state.status(self._now())
        dressed["platformVersion"] = PLATFORM_VERSION
        if upgraded := self._faults.active("control-plane"):
            dressed["version"] = str(upgraded["version"])
        dressed["accessConfig"] = {
            "authenticationMode": self.authentication_mode,
            "bootstrapClusterCreatorAdminPermissions": True,
        }
        dressed["upgradePolicy"] = {"supportType": "STANDARD"}
        dressed["health"] = {"issues": []}
        # Fault eks-auto-mode: EKS runs a Karpenter and a device plugin of its own for *its* nodes (Amazon EKS API,
        # type ComputeConfigResponse).
        auto = self._faults.active("eks-auto-mode")
        dressed["computeConfig"] = {"enabled": auto is not None, "nodePools": ["general-purpose"] if auto else []}
        digest = hashlib.sha256(state.name.encode()).hexdigest()[:32].upper()
        dressed["identity"] = {"oidc": {"issuer": f"https://oidc.eks.{region}.amazonaws.com/id/{digest}"}}
        if dressed["status"] == "CREATING" or state.endpoint is None:
            # EKS answers neither while it creates a cluster.
            dressed.pop("endpoint", None)
            dressed["certificateAuthority"] = {}
        else:
            dressed["endpoint"] = state.endpoint
            dressed["certificateAuthority"] = {"data": state.ca_data}
        return dressed

    # Access entries

    @property
    def authentication_mode(self) -> str:
        """``API``, unless the fault ``eks-authentication-mode`` says ``CONFIG_MAP`` or ``API_AND_CONFIG_MAP``."""
        fault = self._faults.active("eks-authentication-mode")
        return str(fault["mode"]) if fault else "API"

    def _need_api_mode(self) -> None:
        """docs.aws.amazon.com/eks/latest/userguide/setting-up-access-entries.html."""
        if self.authentication_mode == "CONFIG_MAP":
            raise EksError(
                400,
                "InvalidRequestException",
                "The cluster's authentication mode must be set to one of [API, API_AND_CONFIG_MAP] to perform this "
                "operation.",
            )

    def list_access_entries(self, state: ClusterState) -> list[str]:
        self._need_api_mode()
        return sorted(arn for arn, entry in state.access_entries.items() if not self._lacks(entry))

    def _lacks(self, entry: AccessEntry) -> bool:
        """The fault is about Karpenter's nodes; EKS itself makes the entry of a managed node group's role."""
        grouped = f"role/{GROUP_ROLE}-" in entry.principal_arn
        return absent(self._faults, "access-entry") and entry.type.startswith("EC2") and not grouped

    def create_access_entry(self, state: ClusterState, body: JsonObject) -> AccessEntry:
        self._need_api_mode()
        arn = str(body.get("principalArn") or "")
        if not arn.startswith("arn:"):
            raise invalid("The principalArn parameter format is not valid")
        if arn in state.access_entries:
            raise in_use("The specified access entry resource is already in use on this cluster.")
        groups = [str(group) for group in body.get("kubernetesGroups") or []]
        for group in groups:
            if group.startswith("system:"):
                raise invalid("The kubernetes group name must not start with system:")
        kind = str(body.get("type") or "STANDARD")
        username = str(body.get("username") or default_username(arn))
        if kind.startswith("EC2_"):
            username, groups = "system:node:{{EC2PrivateDNSName}}", ["system:nodes"]
        entry = AccessEntry(arn, username, groups, kind, self._now())
        state.access_entries[arn] = entry
        return entry

    def access_entry(self, state: ClusterState, arn: str) -> AccessEntry:
        self._need_api_mode()
        entry = state.access_entries.get(arn)
        if entry is None or self._lacks(entry):
            raise not_found(
                f"The specified principalArn could not be found. You can view your available access entries with "
                f"'list-access-entries': {arn}"
            )
        return entry

    def describe_access_entry(self, state: ClusterState, entry: AccessEntry) -> JsonObject:
        return {
            "clusterName": state.name,
            "principalArn": entry.principal_arn,
            "kubernetesGroups": entry.groups,
            "accessEntryArn": state.arn("access-entry", *entry.principal_arn.split(":", 5)[-1].split("/")),
            "createdAt": entry.created,
            "modifiedAt": entry.created,
            "tags": {},
            "username": entry.username,
            "type": entry.type,
        }

    def associate_policy(self, entry: AccessEntry, body: JsonObject) -> JsonObject:
        arn = str(body.get("policyArn") or "")
        if not arn.startswith("arn:aws:eks::aws:cluster-access-policy/"):
            raise invalid("The policyArn parameter format is not valid")
        scope = body.get("accessScope") or {"type": "cluster"}
        entry.policies[arn] = {
            "policyArn": arn,
            "accessScope": {"type": scope.get("type", "cluster"), "namespaces": scope.get("namespaces") or []},
            "associatedAt": self._now(),
            "modifiedAt": self._now(),
        }
        return entry.policies[arn]

    # Pod identity

    def create_pod_identity(self, state: ClusterState, body: JsonObject) -> JsonObject:
        key = (body.get("namespace"), body.get("serviceAccount"))
        for existing in state.pod_identities.values():
            if (existing["namespace"], existing["serviceAccount"]) == key:
                raise in_use(f"Association already exists: {existing['associationId']}")
        seed = f"{state.name}/{key[0]}/{key[1]}/{len(state.pod_identities)}"
        identifier = "a-" + hashlib.sha256(seed.encode()).hexdigest()[:17]
        state.pod_identities[identifier] = {
            "clusterName": state.name,
            "namespace": key[0],
            "serviceAccount": key[1],
            "roleArn": body.get("roleArn"),
            "associationArn": state.arn("podidentityassociation", identifier),
            "associationId": identifier,
            "tags": body.get("tags") or {},
            "createdAt": self._now(),
            "modifiedAt": self._now(),
        }
        return state.pod_identities[identifier]

    def list_pod_identities(self, state: ClusterState, namespace: str | None, account: str | None) -> list[JsonObject]:
        """EKS filters by either, or both."""
        if absent(self._faults, "pod-identity"):
            return []
        return [
            item
            for item in state.pod_identities.values()
            if namespace in (None, item["namespace"]) and account in (None, item["serviceAccount"])
        ]

    def pod_identity(self, state: ClusterState, identifier: str) -> JsonObject:
        if identifier not in state.pod_identities:
            raise not_found(f"No podidentityassociation found for associationId: {identifier}.")
        return state.pod_identities[identifier]

    # Add-ons

    def create_addon(self, state: ClusterState, body: JsonObject) -> JsonObject:
        name = str(body.get("addonName") or "")
        if name in state.addons:
            raise in_use("Addon already exists.")
        state.addons[name] = {
            "addonName": name,
            "clusterName": state.name,
            "status": "ACTIVE",
            "addonVersion": body.get("addonVersion") or "v1.3.10-eksbuild.2",
            "health": {"issues": []},
            "addonArn": state.arn("addon", name),
            "createdAt": self._now(),
            "modifiedAt": self._now(),
            "tags": body.get("tags") or {},
        }
        return state.addons[name]

    def addon(self, state: ClusterState, name: str) -> JsonObject:
        if name not in state.addons:
            raise not_found(f"No addon: {name} found in cluster: {state.name}")
        return state.addons[name]


def admit_creator(eks: Eks, settings: Settings, account: Account) -> ClusterState:
    """The cluster that exists from the start, with the entries its creator and its nodes get."""
    state = eks.add(ClusterState(settings.cluster_name, settings.region, settings.account))
    creator = eks.create_access_entry(state, {"principalArn": account.admin_arn})
    eks.associate_policy(creator, {"policyArn": CLUSTER_ADMIN_POLICY})
    for role in (account.node_role_arn, account.group_role_arn):
        eks.create_access_entry(state, {"principalArn": role, "type": "EC2_LINUX"})
    eks.create_addon(state, {"addonName": "eks-pod-identity-agent"})
    eks.create_pod_identity(
        state,
        {"namespace": "kube-system", "serviceAccount": "karpenter", "roleArn": account.controller_role_arn},
    )
    return state
