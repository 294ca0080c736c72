"""OpenAPI v3: the index, and one document per group and version, made when first asked for.

helm and kubectl read from it which kinds take ``fieldValidation`` and how lists of a kind merge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from sandbox.apiserver.jsontools import Obj, dumps
from sandbox.apiserver.resources import Registry, Resource
from sandbox.apiserver.schema.types import OBJECT_META, definitions

_DEFS = "#/$defs/"
_COMPONENTS = "#/components/schemas/"
_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation", "force", "pretty")
_META_DEFINITIONS = (OBJECT_META, "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")


class OpenApi:
    """Documents by path; a document is kept (encoded) until the resources of its group change."""

    def __init__(self, registry: Registry, version: str) -> None:
        self._registry = registry
        self._version = version
        self._encoded: dict[str, tuple[tuple[int, ...], bytes]] = {}

    def index(self) -> Obj:
        paths = {
            path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={self._hash(group, version)}"}
            for path, group, version in self._paths()
        }
        return {"paths": paths}

    def _paths(self) -> Iterator[tuple[str, str, str]]:
        for group, versions in self._registry.groups().items():
            for version in versions:
                yield (f"apis/{group}/{version}" if group else f"api/{version}"), group, version

    def _hash(self, group: str, version: str) -> str:
        """Changes with the schemas, so that clients may cache."""
        seed: list[Any] = [self._version, group, version]
        seed += [[item.plural, item.schema] for item in self._registry.version(group, version)]
        return hashlib.sha256(dumps(seed)).hexdigest().upper()

    def document(self, path: str) -> bytes | None:
        """The encoded document at ``path`` ("apis/apps/v1"), ``None`` if there is none."""
        for known, group, version in self._paths():
            if known != path:
                continue
            served = self._registry.version(group, version)
            identity = tuple(id(item) for item in served)
            cached = self._encoded.get(path)
            if cached is None or cached[0] != identity:
                cached = self._encoded[path] = (identity, dumps(self._build(path, served)))
            return cached[1]
        return None

    def _build(self, path: str, served: list[Resource]) -> Obj:
        defs = definitions(self._version)
        schemas: Obj = {}
        paths: Obj = {}
        todo = list(_META_DEFINITIONS)
        for resource in served:
            name = resource.definition
            if resource.custom:
                name = ".".join([*reversed(resource.group.split(".")), resource.version, resource.kind])
                schemas[name] = _custom_schema(resource)
            else:
                todo.append(name)
            paths.update(_operations(path, resource, name))
        while todo:
            name = todo.pop()
            if name in schemas or name not in defs:
                continue
            schemas[name] = convert(defs[name])
            todo.extend(_references(defs[name]))
        info = {"title": "Kubernetes", "version": f"v{self._version}.0"}
        return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        target = value.get("$ref")
        if isinstance(target, str) and target.startswith(_DEFS):
            yield target.removeprefix(_DEFS)
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def convert(value: Any) -> Any:
    """A JSON-schema definition as OpenAPI 3.0: one type instead of ``[type, "null"]``, other references."""
    if isinstance(value, list):
        return [convert(item) for item in value]
    if not isinstance(value, dict):
        return value
    target = value.get("$ref")
    if isinstance(target, str) and target.startswith(_DEFS):
        rest = {key: convert(item) for key, item in value.items() if key != "$ref"}
        reference = {"$ref": _COMPONENTS + target.removeprefix(_DEFS)}
        return {"allOf": [reference], **rest} if rest else reference
    result: Obj = {}
    for key, item in value.items():
        if key == "type" and isinstance(item, list):
            result[key] = item[0]
        elif key == "enum" and value.get("type") == ["string", "null"]:
            continue  # apiVersion and kind: the real documents carry the GVK extension only
        else:
            result[key] = convert(item)
    return result


def _custom_schema(resource: Resource) -> Obj:
    schema = dict(resource.schema or {})
    schema["properties"] = {
        **schema.get("properties", {}),
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"allOf": [{"$ref": _COMPONENTS + OBJECT_META}]},
    }
    schema["x-kubernetes-group-version-kind"] = [_gvk(resource)]
    return schema


def _gvk(resource: Resource) -> Obj:
    return {"group": resource.group, "kind": resource.kind, "version": resource.version}


def _operations(path: str, resource: Resource, schema: str) -> Obj:
    """The paths of one resource with the operations and parameters that clients look for."""
    prefix = f"/{path}/namespaces/{{namespace}}" if resource.namespaced else f"/{path}"
    collection, single = f"{prefix}/{resource.plural}", f"{prefix}/{resource.plural}/{{name}}"
    if "patch" not in resource.verbs:
        return {collection: {"post": _operation("post", resource, schema)}}
    return {
        collection: {
            "get": _operation("list", resource, schema),
            "post": _operation("post", resource, schema),
        },
        single: {verb: _operation(verb, resource, schema) for verb in ("get", "put", "patch", "delete")},
    }


def _operation(action: str, resource: Resource, schema: str) -> Obj:
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _PARAMETERS]
    writes = action in ("post", "put", "patch")
    answer = {"application/json": {"schema": {"$ref": _COMPONENTS + schema}}}
    return {
        "operationId": f"{action}_{resource.group or 'core'}_{resource.version}_{resource.plural}",
        "parameters": parameters if writes else [],
        "responses": {"200": {"description": "OK", "content": answer}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(resource),
    }
