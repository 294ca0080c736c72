"""Patch requests: which formats there are, how they are read, and how a patch that leads to no object is refused.

Source: apiserver pkg/endpoints/handlers/patch.go (v1.36), ``jsonPatcher``, ``smpPatcher``, ``strategicPatchObject``.
"""

from __future__ import annotations

from typing import Any

from sandbox.apiserver import errors, golang
from sandbox.apiserver.jsontools import Obj, dumps
from sandbox.apiserver.patches import formats as patch
from sandbox.apiserver.requests.representations import negotiation
from sandbox.apiserver.resources import Resource
from sandbox.apiserver.storage.options import Options
from sandbox.apiserver.storage.writer import Modify, Writer

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
_MOST_OPERATIONS = 10_000
_MAP = "map[string]interface {}"


def formats(resource: Resource) -> list[str]:
    return [JSON_PATCH, MERGE, *([] if resource.custom else [STRATEGIC]), APPLY]


def modifier(writer: Writer, resource: Resource, kind: str, raw: bytes, options: Options) -> Modify:
    """
    What a patch makes of the stored object. It is read only when there is one: an absent object is 404 first.

    :param kind: media type of the patch.
    :raises ApiError: 400 for a patch that cannot be read, 422 for one that does not apply or leads to no object.
    """

    def modify(old: Obj) -> Obj:
        document = _read(kind, raw, options)
        if kind == JSON_PATCH:
            new = patch.json_patch(old, document)
        elif kind == MERGE:
            new = patch.merge_patch(old, document)
        else:
            new = patch.strategic_patch(writer.types.of(resource), old, document)
        writer.check_type(resource, new)
        shown = golang.show(document) if kind == STRATEGIC else dumps(new).decode()
        return writer.check_fields(resource, new, options, shown)

    return modify


def _read(kind: str, raw: bytes, options: Options) -> Any:
    wanted, go_type = (list, "[]handlers.jsonPatchOp") if kind == JSON_PATCH else (dict, _MAP)
    try:
        document, repeated = negotiation.patch_document(raw, wanted, go_type)
    except ValueError as problem:
        text = str(problem) if kind == STRATEGIC else f"error decoding patch: {problem}"
        raise errors.bad_request(text) from problem
    if kind == JSON_PATCH and len(document) > _MOST_OPERATIONS:
        text = f"The allowed maximum operations in a JSON patch is {_MOST_OPERATIONS}, got {len(document)}"
        raise errors.ApiError(413, "RequestEntityTooLarge", f"Request entity too large: {text}")
    prefix = "json patch " if kind == JSON_PATCH else ""
    options.repeated = [f"{prefix}duplicate field {golang.quote(path)}" for path in repeated]
    return document
