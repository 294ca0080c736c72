"""The objects that every cluster has from its first moment."""

from __future__ import annotations

from sandbox.apiserver.access.auth import MASTERS, User
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.storage.options import Options
from sandbox.apiserver.storage.writer import Writer

NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
_SYSTEM = User("system:apiserver", (MASTERS,))
_EVERYTHING: list[Obj] = [
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    {"nonResourceURLs": ["*"], "verbs": ["*"]},
]
_WRITE = ["create", "delete", "deletecollection", "patch", "update"]
_READ = ["get", "list", "watch"]
_NAMESPACED = {
    "": [
        "configmaps",
        "endpoints",
        "events",
        "persistentvolumeclaims",
        "pods",
        "pods/log",
        "replicationcontrollers",
        "serviceaccounts",
        "services",
    ],
    "apps": ["daemonsets", "deployments", "deployments/scale", "replicasets", "replicasets/scale", "statefulsets"],
    "batch": ["cronjobs", "jobs"],
    "policy": ["poddisruptionbudgets"],
    "networking.k8s.io": ["ingresses", "networkpolicies"],
}


def _rules(verbs: list[str], *, admin: bool) -> list[Obj]:
    rules: list[Obj] = [
        {"apiGroups": [group], "resources": resources, "verbs": verbs} for group, resources in _NAMESPACED.items()
    ]
    if admin:
        rules.append({"apiGroups": [""], "resources": ["secrets", "pods/eviction"], "verbs": verbs})
        rules.append(
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": verbs}
        )
    rules.append({"apiGroups": [""], "resources": ["namespaces", "resourcequotas", "limitranges"], "verbs": _READ})
    return rules


def objects() -> list[tuple[str, str, Obj]]:
    """(group, plural, object) in an order in which they can be created."""
    rbac = "rbac.authorization.k8s.io"
    found: list[tuple[str, str, Obj]] = [("", "namespaces", {"metadata": {"name": name}}) for name in NAMESPACES]
    for name, value, text in (
        (
            "system-node-critical",
            2000001000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        ("system-cluster-critical", 2000000000, "Used for system critical pods that must run in the cluster."),
    ):
        found.append(
            ("scheduling.k8s.io", "priorityclasses", {"metadata": {"name": name}, "value": value, "description": text})
        )
    for name, rules in (
        ("cluster-admin", _EVERYTHING),
        ("admin", _rules(_READ + _WRITE, admin=True)),
        ("edit", _rules(_READ + _WRITE, admin=False)),
        ("view", _rules(_READ, admin=False)),
    ):
        found.append((rbac, "clusterroles", {"metadata": {"name": name}, "rules": rules}))
    binding: Obj = {
        "metadata": {"name": "cluster-admin"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "Group", "name": MASTERS}],
    }
    found.append((rbac, "clusterrolebindings", binding))
    return found


def fill(writer: Writer) -> None:
    """Create the initial objects."""
    for group, plural, obj in objects():
        writer.create(writer.registry.builtin(plural, group), "", obj, Options(_SYSTEM, manager="kube-apiserver"))
