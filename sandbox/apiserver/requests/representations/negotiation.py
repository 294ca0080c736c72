"""Request bodies in, representations out: JSON, YAML, protobuf requests; full, metadata-only and table answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import yaml

from sandbox.apiserver import golang
from sandbox.apiserver.errors import ApiError, bad_request, unsupported_media_type
from sandbox.apiserver.jsontools import Obj, dumps
from sandbox.apiserver.requests.representations import protobuf, tables
from sandbox.apiserver.resources import Resource
from sandbox.apiserver.schema import decoding
from sandbox.apiserver.store import Record

_ACCEPTED = ["application/json", "application/yaml", protobuf.CONTENT_TYPE]
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def media_type(header: str) -> str:
    return header.split(";")[0].strip().lower()


_META = r"""struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"""


def _summary(body: bytes) -> str:
    """A body as a refusal shows it (apiserver pkg/endpoints/handlers/rest.go ``summarizeData``)."""
    if not body:
        return "<empty>"
    cut = body[:30]
    shown = cut.decode(errors="replace") if body.startswith(b"{") else cut.hex()
    return f"{shown} ..." if len(body) > len(cut) else shown


def json_problem(problem: ValueError) -> str:
    """Go's error text for a body that is not JSON."""
    if isinstance(problem, json.JSONDecodeError):
        return golang.syntax_problem(problem.doc, problem)
    return str(problem)


def load(body: bytes) -> tuple[Any, list[str]]:
    """
    A JSON body, and the paths of the keys that it repeats.

    :raises ValueError: it is no JSON.
    """
    repeating: list[bool] = []

    def plain(pairs: list[tuple[str, Any]]) -> Obj:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeating.append(True)
        return found

    text = body.decode()
    value = json.loads(text, object_pairs_hook=plain)
    if not repeating:
        return value, []
    return value, list(decoding.duplicate_fields(json.loads(text, object_pairs_hook=decoding.pairs_hook)))


def patch_document(body: bytes, wanted: type, go_type: str) -> tuple[Any, list[str]]:
    """
    A JSON patch, merge patch or strategic merge patch, and the paths of the keys that it repeats.

    :param wanted: ``dict`` or ``list``; ``go_type``: what Go would have decoded it into.
    :raises ValueError: it is something else; with Go's text.
    """
    try:
        value, repeated = load(body)
    except ValueError as problem:
        raise ValueError(json_problem(problem)) from problem
    if not isinstance(value, wanted):
        shown = decoding.json_type(value)
        raise ValueError(f"json: cannot unmarshal {shown} into Go value of type {go_type}")
    return value, repeated


def parse_yaml(body: bytes) -> Any:
    """YAML, or JSON (which is tried first: it is what clients mostly send under the YAML type)."""
    try:
        return json.loads(body)
    except ValueError:
        try:
            return yaml.load(body, Loader=_Loader)  # noqa: S506 - a safe loader, the C one where there is one
        except yaml.YAMLError as problem:
            raise bad_request(f"error decoding YAML: {problem}") from problem


def decode(body: bytes, content_type: str, wanted: str = "") -> tuple[Obj, list[str]]:
    """
    A request body as an object, and the paths of the keys that it repeats.

    :param wanted: the kind that the path takes; "" for options, of which a refusal says less.
    :raises ApiError: 415 for another media type, 400 for what cannot be parsed or is no object.
    """
    kind = media_type(content_type) or "application/json"
    if kind == protobuf.CONTENT_TYPE:
        return protobuf.decode(body), []
    repeated: list[str] = []
    problem = ""
    if kind in ("application/json", "application/x-www-form-urlencoded", "application/octet-stream"):
        try:
            value, repeated = load(body)
        except ValueError as error:
            value, problem = {}, json_problem(error)
    elif kind in ("application/yaml", "text/yaml", "application/x-yaml"):
        value = parse_yaml(body)
    else:
        raise unsupported_media_type(_ACCEPTED)
    if not isinstance(value, dict):
        problem = f"json: cannot unmarshal {decoding.json_type(value)} into Go value of type {_META}"
    if problem:
        text = f"couldn't get version/kind; json parse error: {problem}"
        if wanted:
            text = f"the object provided is unrecognized (must be of type {wanted}): {text} ({_summary(body)})"
        raise bad_request(text)
    return value, repeated


class Representation:
    """How the client wants objects: as they are, as metadata, or as a table."""

    def __init__(self, accept: str, include_object: str = "Metadata") -> None:
        self.form = "object"
        self._include = include_object or "Metadata"
        for clause in accept.split(","):
            options = dict(part.strip().partition("=")[::2] for part in clause.split(";")[1:])
            if media_type(clause) not in ("application/json", "*/*", "application/*", ""):
                continue
            what = options.get("as", "")
            if what in ("PartialObjectMetadata", "PartialObjectMetadataList") and options.get("v", "v1") == "v1":
                self.form = "metadata"
            elif what == "Table" and options.get("v", "v1") == "v1":
                self.form = "table"
            elif what:
                continue
            return
        if accept and "json" not in accept and "*/*" not in accept and "application/*" not in accept:
            raise ApiError(
                406,
                "NotAcceptable",
                "only the following media types are accepted: application/json, application/json;as=Table, "
                "application/json;as=PartialObjectMetadata",
            )

    def one(self, resource: Resource, record: Record) -> bytes:
        if self.form == "object":
            return record.raw
        if self.form == "metadata":
            return dumps(partial(record.obj))
        return dumps(self._table(resource, [record], {"resourceVersion": str(record.revision)}))

    def many(self, resource: Resource, records: Iterable[Record], metadata: Obj) -> bytes:
        """A list. Typed lists leave apiVersion and kind out of their items, lists of custom resources do not."""
        if self.form == "table":
            return dumps(self._table(resource, list(records), metadata))
        if self.form == "metadata":
            items = [partial(record.obj) for record in records]
            return dumps(
                {
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                    "items": items,
                }
            )
        encoded = b",".join(record.raw if resource.custom else record.item for record in records)
        head = dumps({"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata})
        return head[:-1] + b',"items":[' + encoded + b"]}"

    def _table(self, resource: Resource, records: list[Record], metadata: Obj) -> Obj:
        rows = []
        for record in records:
            row: Obj = {"cells": tables.cells(resource, record.obj)}
            if self._include == "Object":
                row["object"] = record.obj
            elif self._include == "Metadata":
                row["object"] = partial(record.obj)
            rows.append(row)
        return {
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": tables.columns(resource),
            "rows": rows,
        }


def partial(obj: Obj) -> Obj:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}
