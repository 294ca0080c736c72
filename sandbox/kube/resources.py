"""The kinds that the sandbox's parts talk about, and the error that an API server answers with.

Paths are built the way the API server lays them out: ``/api/v1/…`` for the core group, ``/apis/<group>/<version>/…``
for all others (kubernetes/kubernetes ``staging/src/k8s.io/apimachinery/pkg/runtime/schema``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class ApiError(Exception):
    """An answer of the API server that is not a success, or a watch event of type ERROR.

    :ivar code: HTTP status.
    :ivar reason: the Status object's reason (``NotFound``, ``Conflict``, …), or ``""``.
    :ivar message: its message.
    :ivar details: its details (``causes``, ``retryAfterSeconds``, …).
    """

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}

    @property
    def not_found(self) -> bool:
        return self.code == 404

    @property
    def conflict(self) -> bool:
        """A stale resourceVersion or a wrong precondition: read again and retry."""
        return self.code == 409 and self.reason == "Conflict"

    @property
    def already_exists(self) -> bool:
        return self.reason == "AlreadyExists"

    @property
    def expired(self) -> bool:
        """The watch's resourceVersion is too old: list again."""
        return self.code == 410

    def has_cause(self, reason: str) -> bool:
        return any(cause.get("reason") == reason for cause in self.details.get("causes") or [])


@dataclass(frozen=True)
class Resource:
    """One kind and where the API server keeps it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection (no name), an object, or a subresource of it."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            if self.namespaced and not namespace:
                raise ValueError(f"{self.kind} {name!r} is namespaced: give its namespace")
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


def _table() -> dict[str, Resource]:
    rows = """
    - v1 Pod pods +
    - v1 Node nodes -
    - v1 Namespace namespaces -
    - v1 ConfigMap configmaps +
    - v1 Secret secrets +
    - v1 Service services +
    - v1 ServiceAccount serviceaccounts +
    - v1 Event events +
    - v1 ResourceQuota resourcequotas +
    - v1 LimitRange limitranges +
    - v1 PersistentVolumeClaim persistentvolumeclaims +
    - v1 PersistentVolume persistentvolumes -
    apps v1 DaemonSet daemonsets +
    apps v1 Deployment deployments +
    apps v1 ReplicaSet replicasets +
    apps v1 StatefulSet statefulsets +
    apps v1 ControllerRevision controllerrevisions +
    batch v1 Job jobs +
    batch v1 CronJob cronjobs +
    policy v1 PodDisruptionBudget poddisruptionbudgets +
    coordination.k8s.io v1 Lease leases +
    scheduling.k8s.io v1 PriorityClass priorityclasses -
    node.k8s.io v1 RuntimeClass runtimeclasses -
    rbac.authorization.k8s.io v1 ClusterRole clusterroles -
    rbac.authorization.k8s.io v1 ClusterRoleBinding clusterrolebindings -
    rbac.authorization.k8s.io v1 Role roles +
    rbac.authorization.k8s.io v1 RoleBinding rolebindings +
    storage.k8s.io v1 CSINode csinodes -
    storage.k8s.io v1 StorageClass storageclasses -
    apiextensions.k8s.io v1 CustomResourceDefinition customresourcedefinitions -
    karpenter.sh v1 NodePool nodepools -
    karpenter.sh v1 NodeClaim nodeclaims -
    karpenter.sh v1alpha1 NodeOverlay nodeoverlays -
    karpenter.k8s.aws v1 EC2NodeClass ec2nodeclasses -
    """
    table = {}
    for row in rows.split("\n"):
        if row.strip():
            group, version, kind, plural, scope = row.split()
            table[kind] = Resource("" if group == "-" else group, version, plural, kind, scope == "+")
    return table


RESOURCES: dict[str, Resource] = _table()


@dataclass
class ResourceRegistry:
    """The table above plus what a part adds at run time (kinds found by discovery)."""

    by_kind: dict[str, Resource] = field(default_factory=lambda: dict(RESOURCES))

    def __call__(self, kind: str | Resource) -> Resource:
        if isinstance(kind, Resource):
            return kind
        try:
            return self.by_kind[kind]
        except KeyError:
            raise ValueError(f"unknown kind {kind!r}: add it to sandbox/kube/resources.py or pass a Resource") from None

    def of(self, obj: dict[str, Any]) -> Resource:
        """The resource of a manifest, by its apiVersion and kind."""
        resource = self(obj["kind"])
        if obj.get("apiVersion", resource.api_version) != resource.api_version:
            raise ValueError(f"{obj['kind']} of {obj['apiVersion']} is unknown (the table has {resource.api_version})")
        return resource
