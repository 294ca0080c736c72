"""Which objects of a cluster belong to the demo: those that it, gpu-fleet and the sandbox's nodes create."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from demo import workload
from demo.kubectl import Kubectl

#: Namespaces that exist for the demo alone.
NAMESPACES = frozenset({"gpu-fleet-system", "gpu-fleet-validation", "nvidia-device-plugin", workload.NAMESPACE})
RELEASES = frozenset({"karpenter", "karpenter-crd", "nvidia-device-plugin"})
GROUPS = ("karpenter.sh", "karpenter.k8s.aws")
SINGLES = frozenset({"RuntimeClass nvidia", "PriorityClass gpu-fleet-placeholder"})
#: Labels that EKS's cloud controller sets on the nodes of the sandbox's cluster (cloud-provider-aws, pkg/providers/v1).
CLOUD = "k8s.io/cloud-provider-aws"
CLOUD_OF_DEMO = hashlib.md5(b"demo-gpu", usedforsecurity=False).hexdigest()
#: Kinds that cannot be listed, are not stored, or describe the past.
SKIPPED = frozenset({"componentstatuses", "events", "events.events.k8s.io"})


@dataclass(frozen=True)
class Thing:
    """What the demo needs to know of an object.

    :ivar resource: ``deployments.apps``, as kubectl takes it.
    :ivar node: the pod's node.
    :ivar cordoned: the node takes no pods.
    :ivar renewed: when a Lease was renewed.
    """

    resource: str
    kind: str
    namespace: str
    object_name: str
    uid: str
    group: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    node: str = ""
    renewed: str = ""
    cordoned: bool = False
    leaving: bool = False

    @classmethod
    def of(cls, item: dict[str, Any]) -> Thing:
        meta, spec = item["metadata"], item.get("spec") or {}
        group, _, _ = item["apiVersion"].rpartition("/")
        kind = item["kind"]
        return cls(
            resource=f"{kind.lower()}.{group}" if group else kind.lower(),
            kind=kind,
            namespace=meta.get("namespace", ""),
            object_name=meta["name"],
            uid=meta.get("uid", ""),
            group=group,
            labels=meta.get("labels") or {},
            annotations=meta.get("annotations") or {},
            finalizers=tuple(meta.get("finalizers") or ()),
            data=(item.get("data") or {}) if kind == "ConfigMap" else {},
            node=str(spec.get("nodeName") or "") if kind == "Pod" else "",
            renewed=str(spec.get("renewTime") or "") if kind == "Lease" else "",
            cordoned=bool(spec.get("unschedulable")) if kind == "Node" else False,
            leaving=bool(meta.get("deletionTimestamp")),
        )

    @property
    def name(self) -> str:
        """In words, for example ``ConfigMap kube-system/turn``."""
        return (
            f"{self.kind} {self.namespace}/{self.object_name}" if self.namespace else f"{self.kind} {self.object_name}"
        )

    @property
    def address(self) -> tuple[str, ...]:
        """Arguments that name it to kubectl."""
        place = ("-n", self.namespace) if self.namespace else ()
        return self.resource, self.object_name, *place

    @property
    def crd(self) -> bool:
        return self.kind == "CustomResourceDefinition"

    @property
    def is_custom(self) -> bool:
        """An object of Karpenter's."""
        return self.group in GROUPS


def things(kubectl: Kubectl) -> list[Thing]:
    """All objects of the cluster but events."""
    names = kubectl.run("api-resources", "--verbs=list,delete", "-o", "name").split()
    kinds = [name for name in names if name not in SKIPPED and not name.endswith(".metrics.k8s.io")]
    return [Thing.of(item) for item in kubectl.get(",".join(kinds), "-A")]


def belonging(found: Iterable[Thing]) -> list[Thing]:
    """Those of the demo: namespaces first, then what runs on nodes, then the nodes."""
    found = list(found)
    nodes = {thing.object_name for thing in found if _is_node_of_the_sandbox(thing)}
    ours = [thing for thing in found if _is_ours(thing, nodes)]
    return sorted(ours, key=lambda thing: (_ORDER.get(thing.kind, 3), thing.name))


#: The order of removal: a namespace that is being deleted accepts no new objects, so deleted pods are not replaced.
_ORDER = {"Namespace": 0, "Deployment": 1, "DaemonSet": 1, "ReplicaSet": 2, "Pod": 4, "Node": 5}
_ORDER |= {"CustomResourceDefinition": 6}


def _is_node_of_the_sandbox(thing: Thing) -> bool:
    return thing.kind == "Node" and thing.labels.get(CLOUD) == CLOUD_OF_DEMO


def _is_ours(thing: Thing, nodes: set[str]) -> bool:
    if thing.kind == "Namespace":
        return thing.object_name in NAMESPACES
    if thing.namespace in NAMESPACES or thing.is_custom or thing.name in SINGLES:
        return True
    if thing.crd:
        return thing.object_name.endswith(tuple(f".{group}" for group in GROUPS))
    if thing.kind == "Node":
        return thing.object_name in nodes
    if thing.kind == "Pod" and thing.node in nodes:
        return True
    if thing.namespace == "kube-node-lease":
        return thing.object_name in nodes
    # The ledger and the Lease of a release lie beside it; the demo's own mark goes last.
    return _is_of_a_release(thing) or thing.labels.get("gpu-fleet.io/component") in ("ledger", "lease")


def _is_of_a_release(thing: Thing) -> bool:
    return (
        thing.labels.get("app.kubernetes.io/instance") in RELEASES
        or thing.annotations.get("meta.helm.sh/release-name") in RELEASES
        or (thing.labels.get("owner") == "helm" and thing.labels.get("name") in RELEASES)
    )
