"""What of an object an update may change."""

from __future__ import annotations

from sandbox.apiserver import errors
from sandbox.apiserver.jsontools import Obj, equal
from sandbox.apiserver.resources import Resource

SERVER_SET = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
_RESERVED = frozenset({"apiVersion", "kind", "metadata", "status"})
#: Kinds whose strategy allows no unconditional update (pkg/registry/*/strategy.go ``AllowUnconditionalUpdate``).
_VERSIONED_UPDATES = frozenset({"CustomResourceDefinition", "Lease", "PodDisruptionBudget", "RuntimeClass"})


def keep_system_fields(resource: Resource, new: Obj, old: Obj, *, put: bool) -> None:
    """What the server alone sets stays as it was, in ``new``.

    :raises ApiError: 400 for another name, 409 for a stale version or a foreign uid, 422.
    """
    metadata, before = new.setdefault("metadata", {}), old["metadata"]
    name = before["name"]
    if metadata.get("name", name) != name:
        raise errors.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        )
    uid = metadata.get("uid")
    if uid and uid != before["uid"]:
        if put:
            raise errors.stored_otherwise(resource, before.get("namespace", ""), name, "UID", uid, before["uid"])
        raise errors.invalid(resource, name, [errors.invalid_value("metadata.uid", uid, "field is immutable")])
    version = metadata.get("resourceVersion")
    if put and not version and (resource.custom or resource.kind in _VERSIONED_UPDATES):
        raise errors.version_missing(resource, name)
    if version and version != before["resourceVersion"]:
        raise errors.stale(resource, name)
    if before.get("deletionTimestamp"):
        added = [item for item in metadata.get("finalizers") or [] if item not in (before.get("finalizers") or [])]
        if added:
            detail = (
                "no new finalizers can be added if the object is being deleted, found new finalizers "
                f"{_go_strings(added)}"
            )
            raise errors.invalid(resource, name, [errors.forbidden_value("metadata.finalizers", detail)])
    for key in (*SERVER_SET, "name", "namespace", "resourceVersion", "generateName"):
        if key in before:
            metadata[key] = before[key]
        else:
            metadata.pop(key, None)
    for key in ("finalizers", "ownerReferences", "labels", "annotations"):
        if key in metadata and not metadata[key]:
            del metadata[key]


def limit_to(resource: Resource, new: Obj, old: Obj, subresource: str) -> None:
    """A write of the status leaves the rest alone, and the other way round."""
    if subresource == "status":
        for key in (old.keys() | new.keys()) - {"status", "metadata", "apiVersion", "kind"}:
            if key in old:
                new[key] = old[key]
            else:
                new.pop(key, None)
        if resource.custom:
            managed = new["metadata"].get("managedFields")
            new["metadata"] = dict(old["metadata"])
            if managed is not None:
                new["metadata"]["managedFields"] = managed
    elif resource.status:
        if "status" in old:
            new["status"] = old["status"]
        else:
            new.pop("status", None)


def spec_changed(resource: Resource, new: Obj, old: Obj) -> bool:
    ignored = _RESERVED if resource.status or not resource.custom else _RESERVED - {"status"}
    keys = (old.keys() | new.keys()) - ignored
    return any(not equal(new.get(key), old.get(key)) for key in keys)


def _go_strings(values: list[str]) -> str:
    return "[]string{" + ", ".join(f'"{value}"' for value in values) + "}"
