"""Access reviews: 'may I?', 'may they?', 'who am I?'. They are answered, never stored."""

from __future__ import annotations

from sandbox.apiserver.access.auth import MASTERS, User
from sandbox.apiserver.access.rbac import Attributes, Authorizer
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.resources import Resource

KINDS = frozenset(
    {
        "LocalSubjectAccessReview",
        "SelfSubjectAccessReview",
        "SelfSubjectReview",
        "SelfSubjectRulesReview",
        "SubjectAccessReview",
    }
)


def attributes(spec: Obj) -> Attributes:
    asked = spec.get("resourceAttributes")
    if asked is None:
        other = spec.get("nonResourceAttributes") or {}
        return Attributes(verb=other.get("verb", ""), path=other.get("path", "/"))
    return Attributes(
        verb=asked.get("verb", ""),
        group=asked.get("group", ""),
        resource=asked.get("resource", ""),
        subresource=asked.get("subresource", ""),
        namespace=asked.get("namespace", ""),
        name=asked.get("name", ""),
    )


def answer(resource: Resource, body: Obj, user: User, authorizer: Authorizer) -> Obj:
    """The review with its status filled in."""
    spec = body.get("spec") or {}
    status: Obj
    if resource.kind == "SelfSubjectReview":
        status = {"userInfo": user.info()}
    elif resource.kind == "SelfSubjectRulesReview":
        status = _rules(user, spec.get("namespace", ""), authorizer)
    else:
        who = user
        if resource.kind != "SelfSubjectAccessReview":
            who = User(spec.get("user", ""), tuple(spec.get("groups") or ()))
        status = {"allowed": authorizer.allowed(who, attributes(spec))}
    return {
        "kind": resource.kind,
        "apiVersion": resource.api_version,
        "metadata": {"creationTimestamp": None},
        "spec": spec,
        "status": status,
    }


def _rules(user: User, namespace: str, authorizer: Authorizer) -> Obj:
    rules = list(authorizer.rules(user, namespace))
    if MASTERS in user.groups:
        rules.append({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]})
        rules.append({"nonResourceURLs": ["*"], "verbs": ["*"]})
    return {
        "resourceRules": [rule for rule in rules if "resources" in rule],
        "nonResourceRules": [rule for rule in rules if "nonResourceURLs" in rule],
        "incomplete": False,
    }
