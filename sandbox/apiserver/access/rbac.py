"""Role-based access control: may this user do that? (kubernetes plugin/pkg/auth/authorizer/rbac)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.apiserver.access.auth import AUTHENTICATED, MASTERS, User
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.store import Store

GROUP = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Attributes:
    """What is asked for. ``path`` is set, and the rest empty, for non-resource requests."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def full_resource(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


# Open to every authenticated user (system:discovery, system:basic-user, system:public-info-viewer).
_OPEN_PATHS = ("/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz")
_SELF_REVIEWS = frozenset({"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"})
# What kubelets may do here; the real node authorizer is narrower, per node.
_NODE_RULES: tuple[Obj, ...] = (
    {"apiGroups": [""], "resources": ["nodes", "nodes/status", "pods", "pods/status", "pods/log"], "verbs": ["*"]},
    {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]},
    {
        "apiGroups": ["", "node.k8s.io"],
        "resources": ["configmaps", "secrets", "serviceaccounts", "services", "runtimeclasses"],
        "verbs": ["get", "list", "watch"],
    },
)


def _matches(values: list[str] | None, wanted: str) -> bool:
    return values is not None and ("*" in values or wanted in values)


def rule_allows(rule: Obj, attributes: Attributes) -> bool:
    if not _matches(rule.get("verbs"), attributes.verb):
        return False
    if attributes.path:
        return any(
            path == attributes.path or (path.endswith("*") and attributes.path.startswith(path[:-1]))
            for path in rule.get("nonResourceURLs") or []
        )
    if not _matches(rule.get("apiGroups"), attributes.group):
        return False
    resources = rule.get("resources") or []
    wanted = attributes.full_resource
    if not (
        "*" in resources
        or wanted in resources
        or (attributes.subresource and f"*/{attributes.subresource}" in resources)
    ):
        return False
    names = rule.get("resourceNames") or []
    return not names or attributes.name in names


def _is_subject(subject: Obj, user: User, namespace: str) -> bool:
    match subject.get("kind"):
        case "User":
            return bool(subject.get("name") == user.name)
        case "Group":
            return subject.get("name") in user.groups
        case "ServiceAccount":
            space = subject.get("namespace") or namespace
            return f"system:serviceaccount:{space}:{subject.get('name')}" == user.name
        case _:
            return False


class Authorizer:
    def __init__(self, store: Store) -> None:
        self._store = store

    def rules(self, user: User, namespace: str) -> Iterator[Obj]:
        """Every rule that binds the user, cluster-wide ones and those of ``namespace``."""
        for record in self._store.list((GROUP, "clusterrolebindings")):
            yield from self._bound(record.obj, user, "")
        if namespace:
            for record in self._store.list((GROUP, "rolebindings"), namespace):
                yield from self._bound(record.obj, user, namespace)
        if "system:nodes" in user.groups:
            yield from _NODE_RULES

    def _bound(self, binding: Obj, user: User, namespace: str) -> Iterator[Obj]:
        if not any(_is_subject(subject, user, namespace) for subject in binding.get("subjects") or []):
            return
        reference = binding["roleRef"]
        if reference["kind"] == "ClusterRole":
            role = self._store.get((GROUP, "clusterroles"), "", reference["name"])
        else:
            role = self._store.get((GROUP, "roles"), namespace, reference["name"])
        if role is not None:
            yield from role.obj.get("rules") or []

    def allowed(self, user: User, attributes: Attributes) -> bool:
        if MASTERS in user.groups:
            return True
        if AUTHENTICATED in user.groups:
            if attributes.path and attributes.verb == "get" and attributes.path.startswith(_OPEN_PATHS):
                return True
            if attributes.verb == "create" and attributes.resource in _SELF_REVIEWS:
                return True
        return any(rule_allows(rule, attributes) for rule in self.rules(user, attributes.namespace))

    def check(self, user: User, attributes: Attributes) -> None:
        """
        :raises ApiError: 403 with the words of apiserver pkg/endpoints/handlers/responsewriters/errors.go.
        """
        if not self.allowed(user, attributes):
            raise refusal(user, attributes)


def refusal(user: User, attributes: Attributes) -> ApiError:
    if attributes.path:
        text = f'forbidden: User "{user.name}" cannot {attributes.verb} path "{attributes.path}"'
        return ApiError(403, "Forbidden", text, details={})
    where = f'in the namespace "{attributes.namespace}"' if attributes.namespace else "at the cluster scope"
    resource = f"{attributes.resource}.{attributes.group}" if attributes.group else attributes.resource
    named = f'{resource} "{attributes.name}"' if attributes.name else resource
    text = (
        f'{named} is forbidden: User "{user.name}" cannot {attributes.verb} resource "{attributes.full_resource}" '
        f'in API group "{attributes.group}" {where}'
    )
    details: Obj = {"kind": attributes.resource}
    if attributes.name:
        details["name"] = attributes.name
    if attributes.group:
        details["group"] = attributes.group
    return ApiError(403, "Forbidden", text, details=details)
