"""Names, labels and annotations: what is well-formed (apimachinery pkg/util/validation, pkg/api/validation)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sandbox.apiserver.errors import Cause, invalid_value, required
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.resources import Resource

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_PATH_SEGMENT = re.compile(r"^[^/%]+$")

SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_KEY_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)

_LABEL_NAMED = frozenset({"Namespace", "Service"})
_FREELY_NAMED = frozenset({"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"})
_ANNOTATION_BYTES = 256 * 1024


def _name(resource: Resource, name: str) -> Iterator[Cause]:
    where = "metadata.name"
    if resource.kind in _FREELY_NAMED and not resource.custom:
        if not _PATH_SEGMENT.match(name) or name in (".", ".."):
            yield invalid_value(where, name, "may not contain '/' or '%' and may not be '.' or '..'")
    elif resource.kind in _LABEL_NAMED and not resource.custom:
        if len(name) > 63:
            yield invalid_value(where, name, "must be no more than 63 characters")
        if not _LABEL.match(name):
            yield invalid_value(where, name, LABEL_TEXT)
    else:
        if len(name) > 253:
            yield invalid_value(where, name, "must be no more than 253 characters")
        if not _SUBDOMAIN.match(name):
            yield invalid_value(where, name, SUBDOMAIN_TEXT)


def key(text: str, where: str) -> Iterator[Cause]:
    """What is wrong with the key of a label, an annotation or a finalizer."""
    prefix, slash, name = text.rpartition("/")
    if slash and not _SUBDOMAIN.match(prefix):
        yield invalid_value(where, text, f"prefix part {SUBDOMAIN_TEXT}")
    if not name:
        yield invalid_value(where, text, "name part must be non-empty")
    elif len(name) > 63:
        yield invalid_value(where, text, "name part must be no more than 63 characters")
    elif not _QUALIFIED.match(name):
        yield invalid_value(where, text, _KEY_TEXT)


def label_value(value: str, where: str) -> Iterator[Cause]:
    if len(value) > 63:
        yield invalid_value(where, value, "must be no more than 63 characters")
    elif not _VALUE.match(value):
        yield invalid_value(where, value, _VALUE_TEXT)


def labels(found: Obj | None, where: str) -> Iterator[Cause]:
    for name, value in (found or {}).items():
        yield from key(name, where)
        if isinstance(value, str):
            yield from label_value(value, where)


def metadata(resource: Resource, obj: Obj) -> Iterator[Cause]:
    """Everything wrong with an object's name, labels, annotations, finalizers and owner references."""
    meta = obj["metadata"]
    if not meta.get("name"):
        yield required("metadata.name", "name or generateName is required")
    else:
        yield from _name(resource, meta["name"])
    yield from labels(meta.get("labels"), "metadata.labels")
    size = 0
    for name, value in (meta.get("annotations") or {}).items():
        yield from key(name.lower(), "metadata.annotations")
        size += len(name) + len(str(value))
    if size > _ANNOTATION_BYTES:
        yield Cause(
            "FieldValueTooLong", "metadata.annotations", detail=f"may not be more than {_ANNOTATION_BYTES} bytes"
        )
    for finalizer in meta.get("finalizers") or []:
        yield from key(finalizer, "metadata.finalizers")
    if {"orphan", "foregroundDeletion"} <= set(meta.get("finalizers") or []):
        text = "finalizer orphan and foregroundDeletion cannot be both set"
        yield invalid_value("metadata.finalizers", meta["finalizers"], text)
    controllers = 0
    for index, owner in enumerate(meta.get("ownerReferences") or []):
        where = f"metadata.ownerReferences[{index}]"
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                what = "version must not be empty" if field == "apiVersion" else "must not be empty"
                yield invalid_value(f"{where}.{field}", owner.get(field, ""), what)
        controllers += bool(owner.get("controller"))
    if controllers > 1:
        yield invalid_value(
            "metadata.ownerReferences",
            meta["ownerReferences"],
            "Only one reference can have Controller set to true.",
        )
