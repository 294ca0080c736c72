"""What is asked of an object before it is stored: its type, its fields, its values."""

from __future__ import annotations

from sandbox.apiserver import errors
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, drop_nulls
from sandbox.apiserver.resources import Registry, Resource
from sandbox.apiserver.rules import names, validation
from sandbox.apiserver.schema import decoding, typemeta
from sandbox.apiserver.schema.types import Node, prune, unknown_fields
from sandbox.apiserver.storage.options import Options


def check_type(registry: Registry, resource: Resource, obj: Obj) -> None:
    """
    apiVersion and kind of a body against what the path says; built-in types fill in what is absent.

    :raises ApiError: 400 for another type; 422 for a custom resource of another kind.
    """
    if not isinstance(obj.get("metadata") or {}, dict):
        raise errors.bad_request("metadata: expected an object")
    problem = typemeta.problem(registry, resource, obj)
    if problem is not None:
        raise problem
    obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind
    obj.setdefault("metadata", {})


def check_fields(node: Node, resource: Resource, obj: Obj, options: Options, patch: str | None = None) -> Obj:
    """
    The object with undeclared fields removed.

    :param node: the type of the kind's objects.
    :param patch: how a patch that led to ``obj`` is shown; changes the form of the refusal.
    :raises ApiError: 400 (422 for a patch) for a value that cannot be read, or for an undeclared or repeated field
        under Strict.
    """
    wrong = None if resource.custom else decoding.decoding_error(node, obj)
    if wrong is not None:
        raise _undecodable(resource, wrong, patch)
    found = [*(f'unknown field "{path}"' for path in unknown_fields(node, obj)), *options.repeated]
    if found and options.validation == "Strict":
        raise _undecodable(resource, "strict decoding error: " + ", ".join(found), patch)
    if options.validation == "Warn":
        options.warnings.extend(found)
    pruned: Obj = prune(node, drop_nulls(obj))
    pruned.setdefault("metadata", {})
    return pruned


def validate(resource: Resource, new: Obj, old: Obj | None, subresource: str = "") -> None:
    """
    :raises ApiError: 422, naming each field.
    """
    causes = list(names.metadata(resource, new))
    if resource.custom:
        causes += validation.custom(resource, new, old)
    else:
        causes += validation.builtin(resource, new, old, subresource)
    if causes:
        raise errors.invalid(resource, new["metadata"].get("name", ""), causes)


def place(resource: Resource, namespace: str, metadata: Obj) -> None:
    """The namespace of a new object: the one of the path.

    :raises ApiError: 400 if the object names another.
    """
    if not resource.namespaced:
        metadata.pop("namespace", None)
        return
    given = metadata.get("namespace")
    if given and given != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    metadata["namespace"] = namespace


def check_declared(node: Node, resource: Resource, config: Obj) -> None:
    """What structured-merge-diff cannot type, or what conversion cannot read afterwards: plain errors, so 500."""
    plain = drop_nulls(config)
    problems = [f".{path}: field not declared in schema" for path in unknown_fields(node, config)]
    problems += decoding.typed_errors(node, plain)
    metadata, gvk = config["metadata"], typemeta.gvk(resource.api_version, resource.kind)
    where = f"{metadata.get('namespace', '')}/{metadata['name']}; {gvk}"
    if problems:
        listed = problems[0] if len(problems) == 1 else "errors:\n  " + "\n  ".join(problems)
        raise ApiError(500, "", f"failed to create typed patch object ({where}): {listed}")
    unread = None if resource.custom else decoding.unreadable(node, plain)
    if unread is not None:
        text = f"failed to convert new object ({where}) to proper version: unable to convert unstructured object to"
        raise ApiError(500, "", f"{text} {gvk}: {unread}")


def _undecodable(resource: Resource, problem: str, patch: str | None) -> ApiError:
    if patch is not None:
        return errors.invalid_patch(patch, problem)
    kind = resource.kind
    return errors.bad_request(f'{kind} in version "{resource.version}" cannot be handled as a {kind}: {problem}')
