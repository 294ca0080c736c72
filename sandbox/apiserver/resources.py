"""What the server serves: the built-in resources, and those that CustomResourceDefinitions add while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Resource:
    """
    One resource in one version.

    :ivar status: whether ``/status`` is a separate subresource.
    :ivar subresources: name to (kind, group, version) of what is sent there; status is added by itself.
    :ivar generation: whether metadata.generation counts changes of the desired state.
    :ivar definition: key of the OpenAPI definition, built-in kinds only.
    :ivar schema: openAPIV3Schema, custom resources only.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False
    generation: bool = False
    subresources: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    verbs: tuple[str, ...] = _ALL_VERBS
    definition: str = ""
    schema: dict[str, Any] | None = None
    columns: tuple[dict[str, Any], ...] = ()

    @property
    def storage(self) -> tuple[str, str]:
        """Where objects are kept: the same for all versions of a custom resource."""
        return self.group, self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def custom(self) -> bool:
        return self.schema is not None

    def __hash__(self) -> int:
        return hash((self.group, self.version, self.plural))


_SCALE = {"scale": ("Scale", "autoscaling", "v1")}


def _core(plural: str, kind: str, short: str = "", *, namespaced: bool = True, **more: Any) -> Resource:
    return _builtin("", "v1", "core", plural, kind, short, namespaced=namespaced, **more)


def _builtin(
    group: str,
    version: str,
    package: str,
    plural: str,
    kind: str,
    short: str = "",
    *,
    namespaced: bool = True,
    **more: Any,
) -> Resource:
    prefix = "io.k8s.api." if package != "apiextensions" else "io.k8s.apiextensions-apiserver.pkg.apis."
    if package == "apiregistration":
        prefix = "io.k8s.kube-aggregator.pkg.apis."
    return Resource(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        namespaced=namespaced,
        singular=kind.lower(),
        short_names=tuple(short.split()),
        definition=f"{prefix}{package}.{version}.{kind}",
        **more,
    )


def _workload(plural: str, kind: str, short: str, *, scale: bool) -> Resource:
    return _builtin(
        "apps",
        "v1",
        "apps",
        plural,
        kind,
        short,
        status=True,
        generation=True,
        categories=("all",),
        subresources=dict(_SCALE) if scale else {},
    )


_CREATE_ONLY = ("create",)
_RBAC = "rbac.authorization.k8s.io"

BUILTIN: tuple[Resource, ...] = (
    _core("bindings", "Binding", verbs=_CREATE_ONLY),
    _core("configmaps", "ConfigMap", "cm"),
    _core("endpoints", "Endpoints", "ep"),
    _core("events", "Event", "ev"),
    _core("limitranges", "LimitRange", "limits"),
    _core(
        "namespaces",
        "Namespace",
        "ns",
        namespaced=False,
        status=True,
        subresources={"finalize": ("Namespace", "", "v1")},
        verbs=tuple(verb for verb in _ALL_VERBS if verb != "deletecollection"),
    ),
    _core("nodes", "Node", "no", namespaced=False, status=True),
    _core("persistentvolumes", "PersistentVolume", "pv", namespaced=False, status=True),
    _core("persistentvolumeclaims", "PersistentVolumeClaim", "pvc", status=True),
    _core(
        "pods",
        "Pod",
        "po",
        status=True,
        generation=True,
        categories=("all",),
        subresources={
            "binding": ("Binding", "", "v1"),
            "eviction": ("Eviction", "policy", "v1"),
            "log": ("Pod", "", "v1"),
        },
    ),
    _core("replicationcontrollers", "ReplicationController", "rc", status=True, generation=True, categories=("all",)),
    _core("resourcequotas", "ResourceQuota", "quota", status=True),
    _core("secrets", "Secret"),
    _core(
        "serviceaccounts",
        "ServiceAccount",
        "sa",
        subresources={"token": ("TokenRequest", "authentication.k8s.io", "v1")},
    ),
    _core("services", "Service", "svc", status=True, categories=("all",)),
    _workload("controllerrevisions", "ControllerRevision", "", scale=False),
    _workload("daemonsets", "DaemonSet", "ds", scale=False),
    _workload("deployments", "Deployment", "deploy", scale=True),
    _workload("replicasets", "ReplicaSet", "rs", scale=True),
    _workload("statefulsets", "StatefulSet", "sts", scale=True),
    _builtin("batch", "v1", "batch", "jobs", "Job", status=True, generation=True, categories=("all",)),
    _builtin("batch", "v1", "batch", "cronjobs", "CronJob", "cj", status=True, generation=True, categories=("all",)),
    _builtin(
        "policy", "v1", "policy", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", status=True, generation=True
    ),
    _builtin("node.k8s.io", "v1", "node", "runtimeclasses", "RuntimeClass", namespaced=False),
    _builtin(
        "scheduling.k8s.io", "v1", "scheduling", "priorityclasses", "PriorityClass", "pc",
        namespaced=False, generation=True,
    ),
    _builtin("coordination.k8s.io", "v1", "coordination", "leases", "Lease"),
    _builtin(_RBAC, "v1", "rbac", "clusterroles", "ClusterRole", namespaced=False),
    _builtin(_RBAC, "v1", "rbac", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    _builtin(_RBAC, "v1", "rbac", "roles", "Role"),
    _builtin(_RBAC, "v1", "rbac", "rolebindings", "RoleBinding"),
    _builtin("networking.k8s.io", "v1", "networking", "networkpolicies", "NetworkPolicy", "netpol", generation=True),
    _builtin("networking.k8s.io", "v1", "networking", "ingresses", "Ingress", "ing", status=True, generation=True),
    _builtin("storage.k8s.io", "v1", "storage", "storageclasses", "StorageClass", "sc", namespaced=False),
    _builtin("storage.k8s.io", "v1", "storage", "csidrivers", "CSIDriver", namespaced=False),
    _builtin("storage.k8s.io", "v1", "storage", "csinodes", "CSINode", namespaced=False),
    _builtin("storage.k8s.io", "v1", "storage", "volumeattachments", "VolumeAttachment", namespaced=False, status=True),
    _builtin(
        "autoscaling",
        "v2",
        "autoscaling",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        "hpa",
        status=True,
        categories=("all",),
    ),
    _builtin("discovery.k8s.io", "v1", "discovery", "endpointslices", "EndpointSlice", generation=True),
    _builtin(
        "admissionregistration.k8s.io",
        "v1",
        "admissionregistration",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        namespaced=False,
        generation=True,
    ),
    _builtin(
        "admissionregistration.k8s.io",
        "v1",
        "admissionregistration",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        namespaced=False,
        generation=True,
    ),
    _builtin(
        "apiextensions.k8s.io",
        "v1",
        "apiextensions",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "crd crds",
        namespaced=False,
        status=True,
        generation=True,
    ),
    _builtin(
        "authentication.k8s.io", "v1", "authentication", "selfsubjectreviews", "SelfSubjectReview",
        namespaced=False, verbs=_CREATE_ONLY,
    ),
    _builtin(
        "authentication.k8s.io", "v1", "authentication", "tokenreviews", "TokenReview",
        namespaced=False, verbs=_CREATE_ONLY,
    ),
    _builtin(
        "authorization.k8s.io", "v1", "authorization", "subjectaccessreviews", "SubjectAccessReview",
        namespaced=False, verbs=_CREATE_ONLY,
    ),
    _builtin(
        "authorization.k8s.io", "v1", "authorization", "selfsubjectaccessreviews", "SelfSubjectAccessReview",
        namespaced=False, verbs=_CREATE_ONLY,
    ),
    _builtin(
        "authorization.k8s.io", "v1", "authorization", "localsubjectaccessreviews", "LocalSubjectAccessReview",
        verbs=_CREATE_ONLY,
    ),
    _builtin(
        "authorization.k8s.io", "v1", "authorization", "selfsubjectrulesreviews", "SelfSubjectRulesReview",
        namespaced=False, verbs=_CREATE_ONLY,
    ),
)  # fmt: skip


_BUILTIN_GROUPS = frozenset(resource.group for resource in BUILTIN)


class Registry:
    """All resources that are served now."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[str, str, str], Resource] = {}
        self._preferred: dict[str, str] = {}
        for resource in BUILTIN:
            self.add(resource)

    def add(self, resource: Resource) -> None:
        self._by_path[resource.group, resource.version, resource.plural] = resource

    def drop(self, group: str, plural: str) -> None:
        """Stop serving a custom resource in all versions."""
        for key in [key for key in self._by_path if key[0] == group and key[2] == plural]:
            del self._by_path[key]

    def get(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def of_kind(self, group: str, version: str, kind: str) -> Resource | None:
        return next((item for item in self.version(group, version) if item.kind == kind), None)

    def has_builtin(self, group: str) -> bool:
        return group in _BUILTIN_GROUPS

    def any_version(self, group: str, plural: str) -> Resource | None:
        return next((item for item in self if item.group == group and item.plural == plural), None)

    def version(self, group: str, version: str) -> list[Resource]:
        return [item for item in self._by_path.values() if item.group == group and item.version == version]

    def groups(self) -> dict[str, list[str]]:
        """Group to its versions, newest first as Kubernetes sorts them (GA before beta before alpha)."""
        found: dict[str, list[str]] = {}
        for resource in self._by_path.values():
            versions = found.setdefault(resource.group, [])
            if resource.version not in versions:
                versions.append(resource.version)
        for versions in found.values():
            versions.sort(key=_version_rank)
        return found

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self._by_path.values()))

    def builtin(self, plural: str, group: str = "") -> Resource:
        """A built-in resource by its plural; a programming error if there is none."""
        found = self.any_version(group, plural)
        if found is None:
            raise KeyError(f"{plural}.{group}")
        return found


def _version_rank(version: str) -> tuple[int, str]:
    return (2 if "alpha" in version else 1 if "beta" in version else 0, version)
