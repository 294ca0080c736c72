"""apiVersion and kind of a body against those of the path that it was sent to.

Sources (v1.36): apimachinery pkg/runtime/serializer/json/json.go ``Decode``, pkg/runtime/error.go; apiserver
pkg/endpoints/handlers/create.go; apiextensions-apiserver pkg/registry/customresource/validator.go ``ValidateTypeMeta``.
"""

from __future__ import annotations

from sandbox.apiserver import errors
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, dumps
from sandbox.apiserver.resources import Registry, Resource

#: What Go calls the scheme of the built-in types: where it is made.
_SCHEME = "k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30"


def gvk(api_version: str, kind: str) -> str:
    """``GroupVersionKind.String()``: the core group is empty, its slash stays."""
    group, slash, version = api_version.rpartition("/")
    return f"{group if slash else ''}/{version}, Kind={kind}"


def problem(registry: Registry, resource: Resource, obj: Obj) -> ApiError | None:
    """Why an object is not of the resource's type; ``None`` if it is, or does not say."""
    version, kind = obj.get("apiVersion") or "", obj.get("kind") or ""
    return _custom(resource, obj, version, kind) if resource.custom else _builtin(registry, resource, version, kind)


def _other_version(resource: Resource, version: str) -> ApiError:
    expected = f"does not match the expected API version ({resource.api_version})"
    return errors.bad_request(f"the API version in the data ({version}) {expected}")


def _custom(resource: Resource, obj: Obj, version: str, kind: str) -> ApiError | None:
    if not kind:
        text = dumps(obj).decode()
        summary = text if len(text) <= 30 else f"{text[:30]} ..."
        return errors.bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}): Object 'Kind' is missing in "
            f"'{text}' ({summary})"
        )
    if version != resource.api_version:
        return _other_version(resource, version)
    if kind != resource.kind:
        cause = errors.invalid_value("kind", kind, f"must be {resource.kind}")
        return errors.invalid(resource, str((obj.get("metadata") or {}).get("name", "")), [cause])
    return None


def _builtin(registry: Registry, resource: Resource, version: str, kind: str) -> ApiError | None:
    version, kind = version or resource.api_version, kind or resource.kind
    if (version, kind) == (resource.api_version, resource.kind):
        return None
    group, _, short = version.rpartition("/")
    if kind == resource.kind and group == resource.group:
        return _other_version(resource, version)
    known = registry.of_kind(group, short, kind)
    if known is None:
        reason = f'no kind "{kind}" is registered for version "{version}" in scheme "{_SCHEME}"'
    else:
        internal = (resource.group or "core").partition(".")[0]
        reason = f"converting ({short}.{kind}) to ({internal}.{resource.kind}): unknown conversion"
    return errors.bad_request(f'{kind} in version "{short}" cannot be handled as a {resource.kind}: {reason}')
