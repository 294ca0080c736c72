"""Refusals, with the codes, reasons and messages of a real API server.

Source of codes and texts: kubernetes/apimachinery pkg/api/errors/errors.go and pkg/util/validation/field/errors.go.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.resources import Resource


class ApiError(Exception):
    """An answer other than success, sent as a ``Status``."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Obj | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = headers or {}

    def status(self) -> Obj:
        body: Obj = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message}
        if self.reason:
            body["reason"] = self.reason
        if self.details:
            body["details"] = self.details
        body["code"] = self.code
        return body


class _Omitted:
    """The value of a cause that shows none (apimachinery field.OmitValueType)."""


OMITTED = _Omitted()


@dataclass(frozen=True)
class Cause:
    """One rejected field, printed as Kubernetes prints it: ``path: What: value: detail``."""

    type: str
    field: str
    value: Any = None
    detail: str = ""

    def body(self) -> str:
        what = {
            "FieldValueRequired": "Required value",
            "FieldValueForbidden": "Forbidden",
            "FieldValueInvalid": "Invalid value",
            "FieldValueNotSupported": "Unsupported value",
            "FieldValueDuplicate": "Duplicate value",
            "FieldValueNotFound": "Not found",
            "FieldValueTooLong": "Too long",
            "FieldValueTooMany": "Too many",
            "FieldValueTypeInvalid": "Invalid value",
        }[self.type]
        if self.value is OMITTED or self.type in (
            "FieldValueRequired",
            "FieldValueForbidden",
            "FieldValueTooLong",
            "FieldValueTooMany",
        ):
            shown = what
        else:
            shown = f"{what}: {json.dumps(self.value, separators=(',', ':'), ensure_ascii=False)}"
        return f"{shown}: {self.detail}" if self.detail else shown

    def __str__(self) -> str:
        return f"{self.field}: {self.body()}"


def required(field: str, detail: str = "") -> Cause:
    return Cause("FieldValueRequired", field, detail=detail)


def invalid_value(field: str, value: Any, detail: str) -> Cause:
    return Cause("FieldValueInvalid", field, value, detail)


def forbidden_value(field: str, detail: str) -> Cause:
    return Cause("FieldValueForbidden", field, detail=detail)


def not_supported(field: str, value: Any, supported: list[str]) -> Cause:
    quoted = ", ".join(f'"{item}"' for item in supported)
    return Cause("FieldValueNotSupported", field, value, f"supported values: {quoted}")


def _qualified(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def _details(resource: Resource, name: str, **more: Any) -> Obj:
    details: Obj = {}
    if name:
        details["name"] = name
    if resource.group:
        details["group"] = resource.group
    details["kind"] = resource.plural
    details.update(more)
    return details


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{_qualified(resource)} "{name}" not found', details=_details(resource, name))


def already_exists(resource: Resource, name: str) -> ApiError:
    return ApiError(
        409, "AlreadyExists", f'{_qualified(resource)} "{name}" already exists', details=_details(resource, name)
    )


def conflict(resource: Resource, name: str, detail: str) -> ApiError:
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {_qualified(resource)} "{name}": {detail}',
        details=_details(resource, name),
    )


def stale(resource: Resource, name: str) -> ApiError:
    return conflict(
        resource,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )


def forbidden(resource: Resource, name: str, detail: str, causes: list[Obj] | None = None) -> ApiError:
    details = _details(resource, name)
    if causes:
        details["causes"] = causes
    message = f'{_qualified(resource)} "{name}" is forbidden: {detail}'
    return ApiError(403, "Forbidden", message, details=details)


def invalid(resource: Resource, name: str, causes: list[Cause]) -> ApiError:
    """422 for one or several rejected fields (errors.go NewInvalid)."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    texts = [str(cause) for cause in causes]
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details: Obj = {"name": name, "kind": resource.kind}
    if resource.group:
        details["group"] = resource.group
    details["causes"] = [{"reason": cause.type, "message": cause.body(), "field": cause.field} for cause in causes]
    return ApiError(422, "Invalid", f'{kind} "{name}" is invalid: {joined}', details=details)


def unmet_precondition(resource: Resource, name: str, key: str, wanted: str, found: str) -> ApiError:
    """409 for a deletion of another instance or version (apiserver pkg/registry/rest/delete.go ``BeforeDelete``).

    The only conflict that names the kind instead of the resource.
    """
    what = "deleted and then recreated" if key == "UID" else "modified"
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    details: Obj = {"name": name, **({"group": resource.group} if resource.group else {}), "kind": resource.kind}
    message = (
        f'Operation cannot be fulfilled on {kind} "{name}": the {key} in the precondition ({wanted}) does not match '
        f"the {key} in record ({found}). The object might have been {what}"
    )
    return ApiError(409, "Conflict", message, details=details)


def version_missing(resource: Resource, name: str) -> ApiError:
    """422 for a PUT that must say what version it replaces (apiserver pkg/registry/generic/registry/store.go)."""
    cause = invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
    details: Obj = {"name": name, **({"group": resource.group} if resource.group else {}), "kind": resource.plural}
    details["causes"] = [{"reason": cause.type, "message": cause.body(), "field": cause.field}]
    return ApiError(422, "Invalid", f'{_qualified(resource)} "{name}" is invalid: {cause}', details=details)


def stored_otherwise(resource: Resource, namespace: str, name: str, key: str, wanted: str, found: str) -> ApiError:
    """409 for a write that the storage refuses (apiserver pkg/storage/interfaces.go ``Preconditions.Check``)."""
    group = f"{resource.group}/" if resource.custom else ""
    path = "/".join(filter(None, (namespace if resource.namespaced else "", name)))
    detail = (
        f"StorageError: invalid object, Code: 4, Key: /registry/{group}{resource.plural}/{path}, ResourceVersion: 0, "
        f"AdditionalErrorMsg: Precondition failed: {key} in precondition: {wanted}, {key} in object meta: {found}"
    )
    return conflict(resource, name, detail)


def too_large_version(asked: int, current: int) -> ApiError:
    """504 for a read that waits for a revision of the future (apiserver pkg/storage/errors.go)."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {asked}, current: {current}",
        details={"causes": [cause], "retryAfterSeconds": 1},
        headers={"Retry-After": "1"},
    )


def unprocessable() -> ApiError:
    """422 without a word of why (apimachinery NewGenericServerResponse drops the server's message)."""
    text = "the server rejected our request due to an error in our request"
    return ApiError(422, "Invalid", text, details={})


def invalid_patch(shown: str, problem: str) -> ApiError:
    """422 for a patch that leads to what cannot be decoded (apiserver pkg/endpoints/handlers/patch.go)."""
    cause = invalid_value("patch", shown, problem)
    details: Obj = {"causes": [{"reason": cause.type, "message": cause.body(), "field": cause.field}]}
    return ApiError(422, "Invalid", f' "" is invalid: {cause}', details=details)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def internal(message: str) -> ApiError:
    text = f"Internal error occurred: {message}"
    return ApiError(500, "InternalError", text, details={"causes": [{"message": message}]})


def method_not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def unknown_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource", details={})


def unsupported_media_type(accepted: list[str]) -> ApiError:
    return ApiError(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: " + ", ".join(accepted),
    )


def expired(asked: int, oldest: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {asked} ({oldest})")
