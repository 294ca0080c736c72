"""CustomResourceDefinitions: serving what they define, their conditions, and the clean-up when they go.

What apiextensions-apiserver's naming, establishing and finalizing controllers do, done at once.
"""

from __future__ import annotations

from typing import Any

from sandbox.apiserver.errors import Cause, invalid_value, required
from sandbox.apiserver.jsontools import Obj, dig, now
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


def _condition(kind: str, status: str, reason: str, message: str) -> Obj:
    return {"type": kind, "status": status, "lastTransitionTime": now(), "reason": reason, "message": message}


def established(obj: Obj) -> None:
    """Accept names and establish, in place; what a client sent as status is overwritten."""
    spec, old = obj["spec"], obj.get("status") or {}
    if not obj["metadata"].get("deletionTimestamp"):
        finalizers = obj["metadata"].setdefault("finalizers", [])
        if FINALIZER not in finalizers:
            finalizers.append(FINALIZER)
    stored = next(version["name"] for version in spec["versions"] if version.get("storage"))
    conditions = old.get("conditions") or [
        _condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
        _condition("Established", "True", "InitialNamesAccepted", "the initial names have been accepted"),
    ]
    obj["status"] = {
        "acceptedNames": spec["names"],
        "conditions": conditions,
        "storedVersions": list(dict.fromkeys([*(old.get("storedVersions") or []), stored])),
    }


def terminating(obj: Obj) -> None:
    """Say that the definition is going, in place."""
    conditions = [item for item in dig(obj, "status", "conditions") or [] if item["type"] != "Terminating"]
    message = "CustomResource deletion is in progress"
    conditions.append(_condition("Terminating", "True", "InstanceDeletionInProgress", message))
    obj.setdefault("status", {})["conditions"] = conditions


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
