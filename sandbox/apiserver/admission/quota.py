"""ResourceQuota: refusing what would exceed a namespace's hard limits.

Source: apiserver v1.36 pkg/admission/plugin/resourcequota/controller.go ``CheckRequest``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction

from sandbox.apiserver import quantities
from sandbox.apiserver.errors import forbidden
from sandbox.apiserver.jsontools import Obj, clone
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


def _shown(names: Iterable[str], values: Usage) -> str:
    return ",".join(f"{name}={quantities.show(values.get(name, Fraction(0)))}" for name in names)


def charge(store: Store, resource: Resource, obj: Obj, old: Obj | None, *, dry_run: bool) -> None:
    """
    Add what an object takes to the quotas that select it.

    Limits and usage are those in a quota's *status*, which the quota controller fills in: until it has, nothing is
    limited, and what the controller has not yet recounted is still in use.

    :raises ApiError: 403 naming what was requested, used and limited, or that the usage is not known yet.
    """
    namespace = obj["metadata"].get("namespace", "")
    wanted = usage_of(resource, obj)
    charged: list[Obj] = []
    for record in store.list(_QUOTAS, namespace):
        if resource.kind == "Pod" and not _in_scope(record.obj, obj):
            continue
        before = usage_of(resource, old) if old is not None and _selects(resource, record.obj, old) else {}
        changed = _charged(resource, record.obj, obj, wanted, before, created=old is None)
        if changed is not None:
            charged.append(changed)
    if not dry_run:
        for quota in charged:
            store.put(_QUOTAS, quota)


def _selects(resource: Resource, quota: Obj, obj: Obj) -> bool:
    return resource.kind != "Pod" or _in_scope(quota, obj)


def _charged(resource: Resource, quota: Obj, obj: Obj, wanted: Usage, before: Usage, *, created: bool) -> Obj | None:
    """The quota with a new usage; ``None`` if the object changes none of what it counts."""
    name, status = quota["metadata"]["name"], quota.get("status") or {}
    hard = {key: quantities.parse(value) for key, value in (status.get("hard") or {}).items()}
    used = {key: quantities.parse(value) for key, value in (status.get("used") or {}).items()}
    if resource.kind == "Pod" and created:
        _require_values(resource, obj, name, hard, wanted)
    counted = sorted(key for key in wanted if key in hard)
    unknown = [key for key in counted if key not in used]
    if unknown:
        text = f"status unknown for quota: {name}, resources: {','.join(unknown)}"
        raise forbidden(resource, obj["metadata"]["name"], text)
    added = {key: wanted[key] - before.get(key, Fraction(0)) for key in counted}
    added = {key: value for key, value in added.items() if value > 0}
    exceeded = [key for key, value in added.items() if used[key] + value > hard[key]]
    if exceeded:
        detail = (
            f"exceeded quota: {name}, requested: {_shown(exceeded, added)}, used: {_shown(exceeded, used)}, "
            f"limited: {_shown(exceeded, hard)}"
        )
        raise forbidden(resource, obj["metadata"]["name"], detail)
    if not added:
        return None
    new: Obj = clone(quota)
    new["status"]["used"].update({key: quantities.show(used[key] + value) for key, value in added.items()})
    return new


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
