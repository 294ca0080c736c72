"""CustomResourceDefinitions: what is wrong with one, its status, and the resources that it defines.

Pure; :mod:`sandbox.apiserver.storage.definitions` decides when each of that happens. Conditions, reasons and messages:
apiextensions-apiserver v1.36, pkg/controller/{status,establish,finalizer} and pkg/registry/customresourcedefinition.
"""

from __future__ import annotations

from typing import Any

from sandbox.apiserver.errors import Cause, invalid_value, required
from sandbox.apiserver.jsontools import Obj, clone, dig, now
from sandbox.apiserver.resources import Registry, Resource

FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
KEY = ("apiextensions.k8s.io", "customresourcedefinitions")


def validate(obj: Obj) -> list[Cause]:
    spec = obj.get("spec") or {}
    names = spec.get("names") or {}
    causes = [required(f"spec.{key}") for key in ("group", "scope", "versions") if not spec.get(key)]
    causes += [required(f"spec.names.{key}") for key in ("plural", "kind") if not names.get(key)]
    if causes:
        return causes
    expected = f"{names['plural']}.{spec['group']}"
    if obj["metadata"]["name"] != expected:
        detail = 'must be spec.names.plural+"."+spec.group'
        causes.append(invalid_value("metadata.name", obj["metadata"]["name"], detail))
    if sum(1 for version in spec["versions"] if version.get("storage")) != 1:
        detail = "must have exactly one version marked as storage version"
        causes.append(invalid_value("spec.versions", "versions", detail))
    for index, version in enumerate(spec["versions"]):
        if not dig(version, "schema", "openAPIV3Schema"):
            causes.append(required(f"spec.versions[{index}].schema.openAPIV3Schema", "schemas are required"))
    return causes


def _set_condition(obj: Obj, kind: str, status: str, reason: str, message: str) -> None:
    """A condition in its place, in place; unchanged ones keep their time."""
    conditions = obj["status"].get("conditions") or []
    new = {"type": kind, "status": status, "lastTransitionTime": now(), "reason": reason, "message": message}
    for index, item in enumerate(conditions):
        if item["type"] == kind:
            if item["status"] == status:
                new["lastTransitionTime"] = item["lastTransitionTime"]
            conditions[index] = new
            break
    else:
        conditions.append(new)
    obj["status"]["conditions"] = conditions


def is_true(obj: Obj, kind: str) -> bool:
    conditions = dig(obj, "status", "conditions") or []
    return any(item["type"] == kind and item["status"] == "True" for item in conditions)


def storage(obj: Obj) -> tuple[str, str]:
    return obj["spec"]["group"], obj["spec"]["names"]["plural"]


def keep_status(obj: Obj, old: Obj | None) -> None:
    """The status is the controllers': what a client sent is dropped, the version to store is noted, in place.

    pkg/registry/customresourcedefinition/strategy.go ``PrepareForCreate`` and ``PrepareForUpdate``.
    """
    status: Obj = clone(old.get("status") or {}) if old is not None else {}
    status.setdefault("acceptedNames", {"kind": "", "plural": ""})
    status.setdefault("conditions", None)
    stored = next(version["name"] for version in obj["spec"]["versions"] if version.get("storage"))
    status["storedVersions"] = list(dict.fromkeys([*(status.get("storedVersions") or []), stored]))
    obj["status"] = status


def accept_names(obj: Obj, others: list[Obj]) -> bool:
    """
    Accept the names that no other definition of the group has, in place.

    :returns: whether all were accepted.
    """
    wanted, accepted = obj["spec"]["names"], obj["status"].get("acceptedNames") or {}
    rivals = [dig(other, "status", "acceptedNames") or {} for other in others if _same_group(obj, other)]
    words = {item.get(key) for item in rivals for key in ("plural", "singular")}
    words |= {short for item in rivals for short in item.get("shortNames") or ()}
    kinds = {name for item in rivals for name in (item.get("kind"), item.get("listKind"))}
    conflict, names = None, dict(accepted)
    takers = {"plural": words, "singular": words, "shortNames": words, "kind": kinds, "listKind": kinds}
    for key, taken in takers.items():
        value = wanted.get(key)
        asked = value if isinstance(value, list) else [value]
        used = next((item for item in asked if item and item in taken and value != accepted.get(key)), None)
        if used is not None:
            conflict = (f"{key[0].upper()}{key[1:]}Conflict", f'"{used}" is already in use')
        elif value is not None:
            names[key] = value
    if "categories" in wanted:
        names["categories"] = wanted["categories"]
    obj["status"]["acceptedNames"] = names
    if conflict is not None:
        _set_condition(obj, "NamesAccepted", "False", *conflict)
        _set_condition(obj, "Established", "False", "NotAccepted", "not all names are accepted")
        return False
    _set_condition(obj, "NamesAccepted", "True", "NoConflicts", "no conflicts found")
    _set_condition(obj, "Established", "False", "Installing", "the initial names have been accepted")
    return True


def _same_group(obj: Obj, other: Obj) -> bool:
    return bool(obj["spec"]["group"] == other["spec"]["group"])


def establish(obj: Obj) -> None:
    """Say that what the definition defines is served, in place."""
    _set_condition(obj, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted")


def mark_deleted(obj: Obj) -> None:
    """The first deletion, in place: the definition stays until its objects are deleted (etcd.go ``Delete``)."""
    obj["metadata"]["deletionTimestamp"] = now()
    finalizers = obj["metadata"].setdefault("finalizers", [])
    if FINALIZER not in finalizers:
        finalizers.append(FINALIZER)
    message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
    terminating(obj, "InstanceDeletionPending", message)


def terminating(obj: Obj, reason: str, message: str) -> None:
    """Say that the definition is going, in place."""
    _set_condition(obj, "Terminating", "True", reason, message)


def being_finalized(obj: Obj) -> bool:
    """Whether the deletion of its objects has begun."""
    conditions = dig(obj, "status", "conditions") or []
    return any(item["type"] == "Terminating" and item["reason"] == "InstanceDeletionInProgress" for item in conditions)


def _columns(version: Obj) -> tuple[dict[str, Any], ...]:
    selectable = [{"selectable": item["jsonPath"].lstrip(".")} for item in version.get("selectableFields") or []]
    return (*(version.get("additionalPrinterColumns") or []), *selectable)


def resources(obj: Obj) -> list[Resource]:
    """The resources that a definition serves, one per version."""
    spec = obj["spec"]
    names = spec["names"]
    found = []
    for version in spec["versions"]:
        if not version.get("served", True):
            continue
        subresources = version.get("subresources") or {}
        scale = {"scale": ("Scale", "autoscaling", "v1")} if "scale" in subresources else {}
        found.append(
            Resource(
                group=spec["group"],
                version=version["name"],
                plural=names["plural"],
                kind=names["kind"],
                namespaced=spec["scope"] == "Namespaced",
                singular=names.get("singular") or names["kind"].lower(),
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                status="status" in subresources,
                generation=True,
                subresources=scale,
                schema=dig(version, "schema", "openAPIV3Schema") or {},
                columns=_columns(version),
            )
        )
    return found


def serve(registry: Registry, obj: Obj) -> None:
    """Serve the definition's resources as they are now."""
    registry.drop(obj["spec"]["group"], obj["spec"]["names"]["plural"])
    for resource in resources(obj):
        registry.add(resource)
