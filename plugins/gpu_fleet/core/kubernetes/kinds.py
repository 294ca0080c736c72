"""The explicit REST mapping of every kind the package touches.

Plurals are written out, never guessed: ``EC2NodeClass`` is ``ec2nodeclasses``. Kinds that are not listed here (objects
of arbitrary charts) are mapped by the API server's own discovery in ``gpu_fleet.hooks.kubernetes.hook``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """The REST address of a kind.

    :ivar group: API group, empty for the core group.
    :ivar plural: the resource name in URLs.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of a collection, an object or a subresource.

        :param namespace: ``None`` on a namespaced kind addresses the collection over all namespaces.
        """
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        tail = f"/{name}" if name else ""
        return f"{root}{scope}/{self.plural}{tail}" + (f"/{subresource}" if subresource else "")


@dataclass(frozen=True)
class ObjectRef:
    """One object's identity; JSON-able through :meth:`to_json`."""

    kind: Kind
    name: str
    namespace: str | None = None

    def __str__(self) -> str:
        where = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind.kind} {where}{self.name}"


NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
NODE = Kind("", "v1", "Node", "nodes", namespaced=False)
POD = Kind("", "v1", "Pod", "pods")
EVENT = Kind("", "v1", "Event", "events")
SECRET = Kind("", "v1", "Secret", "secrets")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
SERVICE = Kind("", "v1", "Service", "services")
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts")
DAEMON_SET = Kind("apps", "v1", "DaemonSet", "daemonsets")
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments")
REPLICA_SET = Kind("apps", "v1", "ReplicaSet", "replicasets")
STATEFUL_SET = Kind("apps", "v1", "StatefulSet", "statefulsets")
CONTROLLER_REVISION = Kind("apps", "v1", "ControllerRevision", "controllerrevisions")
JOB = Kind("batch", "v1", "Job", "jobs")
CRON_JOB = Kind("batch", "v1", "CronJob", "cronjobs")
PERSISTENT_VOLUME = Kind("", "v1", "PersistentVolume", "persistentvolumes", namespaced=False)
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")
RUNTIME_CLASS = Kind("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", namespaced=False)
PRIORITY_CLASS = Kind("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", namespaced=False)
POD_DISRUPTION_BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
CRD = Kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False)
NODE_POOL = Kind("karpenter.sh", "v1", "NodePool", "nodepools", namespaced=False)
NODE_CLAIM = Kind("karpenter.sh", "v1", "NodeClaim", "nodeclaims", namespaced=False)
NODE_OVERLAY = Kind("karpenter.sh", "v1alpha1", "NodeOverlay", "nodeoverlays", namespaced=False)
EC2_NODE_CLASS = Kind("karpenter.k8s.aws", "v1", "EC2NodeClass", "ec2nodeclasses", namespaced=False)

KINDS: tuple[Kind, ...] = (
    NAMESPACE, NODE, POD, EVENT, SECRET, CONFIG_MAP, SERVICE, SERVICE_ACCOUNT, DAEMON_SET, DEPLOYMENT, REPLICA_SET,
    STATEFUL_SET, CONTROLLER_REVISION, JOB, CRON_JOB, PERSISTENT_VOLUME, LEASE, RUNTIME_CLASS, PRIORITY_CLASS,
    POD_DISRUPTION_BUDGET, CRD, NODE_POOL, NODE_CLAIM, NODE_OVERLAY, EC2_NODE_CLASS,
)  # fmt: skip

_BY_TYPE = {(kind.api_version, kind.kind): kind for kind in KINDS}


def kind_of(manifest: dict[str, Any]) -> Kind | None:
    """The mapping of a manifest's kind, or ``None`` if only discovery knows it."""
    return _BY_TYPE.get((str(manifest.get("apiVersion", "")), str(manifest.get("kind", ""))))


def kind_named(api_version: str, kind: str) -> Kind | None:
    """The mapping of ``apiVersion`` and ``kind``, or ``None`` if only discovery knows it."""
    return _BY_TYPE.get((api_version, kind))
