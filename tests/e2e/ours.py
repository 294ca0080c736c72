"""What gpu-fleet may write on a cluster, rule by rule: the list in docs/guides/shared-clusters.md, applied by a test.

A rule judges one entry of the audit log. What no rule allows is somebody else's. Nothing of the package is imported:
that the list and the package agree is what is tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Json = dict[str, Any]

SYSTEM, VALIDATION, PLUGIN = "gpu-fleet-system", "gpu-fleet-validation", "nvidia-device-plugin"
#: Release to its namespace.
RELEASES = {"karpenter": "kube-system", "karpenter-crd": "kube-system", "nvidia-device-plugin": PLUGIN}
PROVISIONING = frozenset({"nodepools", "ec2nodeclasses", "nodeoverlays"})
POOL = "karpenter.sh/nodepool"
DOMAIN = "gpu-fleet.io/"
#: The keys of a node of ours that are written, beside those of our own domain.
NODE_ANNOTATIONS = frozenset({"karpenter.sh/do-not-disrupt"})
NODE_FIELDS = frozenset({"unschedulable", "taints"})
#: Fields of a patch that say what is meant or guard against a stale write.
GUARDS = frozenset({"apiVersion", "kind", "name", "uid", "resourceVersion"})


@dataclass(frozen=True)
class Entry:
    """One audited write."""

    raw: Json

    @cached_property
    def reference(self) -> Json:
        found: Json = self.raw.get("objectRef") or {}
        return found

    @cached_property
    def facts(self) -> Json:
        """Labels, node and owners of the object, see ``sandbox/apiserver/requests/audit.py``."""
        found: Json = json.loads(self.raw.get("annotations", {}).get("sandbox/object", "{}"))
        return found

    @property
    def is_kubernetes(self) -> bool:
        return self.raw.get("kind") == "Event"

    @property
    def verb(self) -> str:
        return str(self.raw["verb"])

    @property
    def resource(self) -> str:
        return str(self.reference.get("resource", ""))

    @property
    def subresource(self) -> str:
        return str(self.reference.get("subresource", ""))

    @property
    def namespace(self) -> str:
        return "" if self.resource == "namespaces" else str(self.reference.get("namespace", ""))

    @property
    def name(self) -> str:
        return str(self.reference.get("name", ""))

    @property
    def uid(self) -> str:
        return str(self.reference.get("uid", ""))

    @property
    def user(self) -> str:
        return str(self.raw.get("impersonatedUser", self.raw["user"])["username"])

    @property
    def agent(self) -> str:
        return str(self.raw.get("userAgent", ""))

    @property
    def labels(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.facts.get("labels") or {}
        return found

    @property
    def body(self) -> Any:
        return self.raw.get("requestObject")

    @property
    def at(self) -> str:
        return str(self.raw["requestReceivedTimestamp"])

    @property
    def code(self) -> int:
        return int(self.raw["responseStatus"]["code"])

    @property
    def is_dry_run(self) -> bool:
        return "sandbox/dry-run" in self.raw.get("annotations", {})

    @property
    def took_effect(self) -> bool:
        return self.code < 300 and not self.is_dry_run

    def __str__(self) -> str:
        what = "/".join(filter(None, (self.resource, self.subresource)))
        where = "/".join(filter(None, (self.namespace, self.name or "*")))
        keys = ""
        if self.resource == "nodes" and isinstance(self.body, dict):
            keys = f" [{', '.join(node_keys(self.body))}]"
        return f"{self.at} {self.agent.split(' ')[0]}: {self.verb} {what} {where}{keys} -> {self.code}"


@dataclass
class Ours:
    """The allow-list, for one cluster file.

    :ivar pools: names of our NodePools, also of former ones.
    :ivar nodes: names of the nodes that these pools have or had.
    """

    cluster: str
    pools: set[str]
    nodes: set[str] = field(default_factory=set)

    def allows(self, entry: Entry) -> str:
        """The name of the rule that allows a write; empty if none does."""
        return next((name for name, rule in RULES.items() if rule(self, entry)), "")


Rule = Callable[[Ours, Entry], bool]


def _our_namespaces(_: Ours, e: Entry) -> bool:
    return e.resource == "namespaces" and e.name in (SYSTEM, VALIDATION, PLUGIN) and e.verb in ("create", "patch")


def _inside_our_namespaces(_: Ours, e: Entry) -> bool:
    return e.namespace in (SYSTEM, VALIDATION)


def _classes(_: Ours, e: Entry) -> bool:
    named = {"runtimeclasses": "nvidia", "priorityclasses": "gpu-fleet-placeholder"}
    return named.get(e.resource) == e.name and e.verb in ("create", "patch", "delete")


def _helm_storage(_: Ours, e: Entry) -> bool:
    found = re.fullmatch(r"sh\.helm\.release\.v1\.(.+)\.v\d+", e.name)
    return e.resource == "secrets" and found is not None and RELEASES.get(found[1]) == e.namespace


def _ledgers(_: Ours, e: Entry) -> bool:
    release = e.name.removeprefix("gpu-fleet-release-")
    return e.resource in ("configmaps", "leases") and release != e.name and RELEASES.get(release) == e.namespace


def _release_objects(_: Ours, e: Entry) -> bool:
    """Objects of a release carry Helm's labels; ``karpenter`` itself names a few without (its roles)."""
    release = e.labels.get("app.kubernetes.io/instance", "")
    return e.labels.get("app.kubernetes.io/managed-by") == "Helm" and release in RELEASES


def _karpenter_crds(_: Ours, e: Entry) -> bool:
    return e.resource == "customresourcedefinitions" and e.name.endswith((".karpenter.sh", ".karpenter.k8s.aws"))


def _provisioning(ours: Ours, e: Entry) -> bool:
    mine = e.labels.get("gpu-fleet.io/cluster") == ours.cluster
    return e.resource in PROVISIONING and mine and e.verb in ("create", "patch", "delete")


def _node_claims(ours: Ours, e: Entry) -> bool:
    return e.resource == "nodeclaims" and e.labels.get(POOL) in ours.pools and e.verb in ("patch", "delete")


def _nodes(ours: Ours, e: Entry) -> bool:
    """Only the keys that the guide lists; everything else of a node is Karpenter's, the kubelet's or a person's."""
    if e.resource != "nodes" or e.subresource or e.labels.get(POOL) not in ours.pools or e.verb != "patch":
        return False
    return isinstance(e.body, dict) and all(_is_our_key(key) for key in node_keys(e.body))


def _pods_on_our_nodes(ours: Ours, e: Entry) -> bool:
    """Evictions of a drain, and deletions where the spec says so."""
    evicts = (e.subresource, e.verb) == ("eviction", "create") or (e.subresource, e.verb) == ("", "delete")
    return e.resource == "pods" and evicts and (e.facts.get("node") in ours.nodes or e.code == 404)


RULES: dict[str, Rule] = {
    "namespaces of gpu-fleet": _our_namespaces,
    "objects in gpu-fleet-system and the validation namespace": _inside_our_namespaces,
    "RuntimeClass nvidia, PriorityClass gpu-fleet-placeholder": _classes,
    "Helm's Secrets of our releases": _helm_storage,
    "ledger and Lease beside a release": _ledgers,
    "objects of our releases": _release_objects,
    "Karpenter's CRDs": _karpenter_crds,
    "NodePools, EC2NodeClasses and NodeOverlays of our pools": _provisioning,
    "NodeClaims of our pools": _node_claims,
    "labels, annotations, taint and cordon of nodes of our pools": _nodes,
    "pods on nodes of our pools": _pods_on_our_nodes,
}


def node_keys(body: Mapping[str, Any]) -> list[str]:
    """What a patch of a node touches: ``label X``, ``annotation X``, ``spec.X``."""
    meta = body.get("metadata") or {}
    found = [f"label {key}" for key in meta.get("labels") or {}]
    found += [f"annotation {key}" for key in meta.get("annotations") or {}]
    found += [f"metadata.{key}" for key in meta if key not in GUARDS | {"labels", "annotations"}]
    found += [f"spec.{key}" for key in body.get("spec") or {}]
    return found + [key for key in body if key not in GUARDS | {"metadata", "spec"}]


def _is_our_key(key: str) -> bool:
    kind, _, name = key.partition(" ")
    if kind == "label":
        return name.startswith(DOMAIN)
    if kind == "annotation":
        return name.startswith(DOMAIN) or name in NODE_ANNOTATIONS
    return key.removeprefix("spec.") in NODE_FIELDS


def is_by_us(entry: Entry) -> bool:
    """Airflow's tasks: the package's own client, and the helm that it runs. They come with an EKS token, so their user
    is an IAM principal; people and controllers of these tests have certificates."""
    return entry.user.startswith("arn:") or entry.agent.startswith(("gpu-fleet", "Helm/"))


def foreign(entries: Iterable[Entry], ours: Ours) -> list[Entry]:
    """The writes by us that no rule allows. Dry runs change nothing and are none; refused writes are attempts."""
    return [e for e in entries if e.is_kubernetes and is_by_us(e) and not e.is_dry_run and not ours.allows(e)]
