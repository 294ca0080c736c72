"""ResourceQuota: refusing what would exceed a namespace's hard limits (plugin/pkg/admission/resourcequota)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction

from sandbox.apiserver import quantities
from sandbox.apiserver.errors import forbidden
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.resources import Resource
from sandbox.apiserver.store import Store

_QUOTAS = ("", "resourcequotas")
_STANDARD = frozenset({"cpu", "memory", "ephemeral-storage"})
_COUNTED = frozenset(
    {
        "configmaps",
        "persistentvolumeclaims",
        "pods",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "services",
    }
)

Usage = dict[str, Fraction]


def _terminal(pod: Obj) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def pod_usage(pod: Obj) -> Usage:
    """What a pod counts for: the larger of its containers' sum and each init container."""
    if _terminal(pod):
        return {}
    spec = pod.get("spec") or {}
    usage: Usage = {"pods": Fraction(1)}
    for part, prefix in (("requests", "requests."), ("limits", "limits.")):
        total: Usage = {}
        for container in spec.get("containers") or []:
            for name, value in ((container.get("resources") or {}).get(part) or {}).items():
                total[name] = total.get(name, Fraction(0)) + quantities.parse(value)
        for container in spec.get("initContainers") or []:
            for name, value in ((container.get("resources") or {}).get(part) or {}).items():
                total[name] = max(total.get(name, Fraction(0)), quantities.parse(value))
        for name, value in total.items():
            if part == "requests":
                usage[prefix + name] = value
                if name in _STANDARD:
                    usage[name] = value
            elif name in _STANDARD:
                usage[prefix + name] = value
    return usage


def usage_of(resource: Resource, obj: Obj) -> Usage:
    """What one object counts for in any quota."""
    count = f"count/{resource.plural}" + (f".{resource.group}" if resource.group else "")
    if resource.kind == "Pod" and not resource.custom:
        usage = pod_usage(obj)
        usage[count] = Fraction(1)
        return usage
    usage = {count: Fraction(1)}
    if not resource.group and resource.plural in _COUNTED:
        usage[resource.plural] = Fraction(1)
    return usage


def _in_scope(hard: Obj, obj: Obj) -> bool:
    """Whether a quota's scopes select the object. Scopes select pods only."""
    spec = hard.get("spec") or {}
    scopes = list(spec.get("scopes") or [])
    expressions = (spec.get("scopeSelector") or {}).get("matchExpressions") or []
    pod = obj.get("spec") or {}
    for scope in scopes:
        if not _matches_scope(scope, "Exists", [], pod):
            return False
    return all(
        _matches_scope(item["scopeName"], item.get("operator", "Exists"), item.get("values") or [], pod)
        for item in expressions
    )


def _matches_scope(scope: str, operator: str, values: list[str], pod: Obj) -> bool:
    match scope:
        case "PriorityClass":
            name = pod.get("priorityClassName", "")
            if operator in ("In", "NotIn"):
                return (name in values) is (operator == "In")
            return bool(name) is (operator == "Exists")
        case "Terminating":
            return pod.get("activeDeadlineSeconds") is not None
        case "NotTerminating":
            return pod.get("activeDeadlineSeconds") is None
        case _:
            return True


def _total(store: Store, resource: Resource, namespace: str, quota: Obj, leave_out: str) -> Usage:
    total: Usage = {}
    for record in store.list(resource.storage, namespace):
        if record.name == leave_out or (resource.kind == "Pod" and not _in_scope(quota, record.obj)):
            continue
        for name, value in usage_of(resource, record.obj).items():
            total[name] = total.get(name, Fraction(0)) + value
    return total


def _shown(names: Iterable[str], values: Usage) -> str:
    return ",".join(f"{name}={quantities.show(values.get(name, Fraction(0)))}" for name in names)


def check(store: Store, resource: Resource, obj: Obj, old: Obj | None) -> None:
    """
    Usage is counted from the objects themselves, not read from the quota's status, so that it is exact without a
    controller.

    :raises ApiError: 403 naming what was requested, used and limited.
    """
    namespace = obj["metadata"].get("namespace", "")
    quotas = store.list(_QUOTAS, namespace)
    if not quotas:
        return
    wanted = usage_of(resource, obj)
    before = usage_of(resource, old) if old is not None else {}
    increased = {name for name, value in wanted.items() if value > before.get(name, Fraction(0))}
    for record in quotas:
        quota = record.obj
        if resource.kind == "Pod" and not _in_scope(quota, obj):
            continue
        hard = {name: quantities.parse(value) for name, value in ((quota.get("spec") or {}).get("hard") or {}).items()}
        if resource.kind == "Pod" and old is None:
            _require_values(resource, obj, record.name, hard, wanted)
        concerned = sorted(increased & hard.keys())
        if not concerned:
            continue
        used = _total(store, resource, namespace, quota, obj["metadata"]["name"] if old is not None else "")
        exceeded = [name for name in concerned if used.get(name, Fraction(0)) + wanted[name] > hard[name]]
        if exceeded:
            detail = (
                f"exceeded quota: {record.name}, requested: {_shown(exceeded, wanted)}, "
                f"used: {_shown(exceeded, used)}, limited: {_shown(exceeded, hard)}"
            )
            raise forbidden(resource, obj["metadata"]["name"], detail)


def _require_values(resource: Resource, pod: Obj, quota: str, hard: Usage, wanted: Usage) -> None:
    """A quota on cpu or memory demands that every container says how much it wants."""
    names = sorted(
        name
        for name in hard
        if name.removeprefix("requests.").removeprefix("limits.") in _STANDARD and name not in wanted
    )
    if not names:
        return
    containers = [item["name"] for item in itertools.chain(pod["spec"].get("containers") or [])]
    shown = "; ".join(f"{name} for: {','.join(containers)}" for name in names)
    raise forbidden(resource, pod["metadata"]["name"], f"failed quota: {quota}: must specify {shown}")
