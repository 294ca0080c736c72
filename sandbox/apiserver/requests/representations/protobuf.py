"""Request bodies in Kubernetes' protobuf encoding, turned into JSON.

helm and several kubectl commands send ``application/vnd.kubernetes.protobuf`` and accept JSON in return. The envelope
is ``k8s\\0`` followed by a ``runtime.Unknown`` (apimachinery pkg/runtime/serializer/protobuf). Field numbers are in
``protobuf_fields.json``: message to {number: [JSON name, one|list|map|inline, type]}, taken from the generated.proto
files of kubernetes/api and kubernetes/apimachinery; 'inline' are Go's embedded structs, whose members JSON lifts up.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import json
import struct
from collections.abc import Iterator
from importlib import resources as package_data
from typing import Any

from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, rfc3339

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_PACKAGES = {
    "": "core",
    "rbac.authorization.k8s.io": "rbac",
    "meta.k8s.io": "meta",
}


# Go writes zeros and empty strings of plain fields too, which JSON's omitempty leaves out again. Of pointer fields a
# zero is meant; these are the ones that JSON shows as zero or false (kubernetes/api */types.go).
_POINTERS = frozenset(
    {
        "activeDeadlineSeconds",
        "allowPrivilegeEscalation",
        "automountServiceAccountToken",
        "backoffLimit",
        "blockOwnerDeletion",
        "completions",
        "controller",
        "defaultMode",
        "enableServiceLinks",
        "expirationSeconds",
        "gracePeriodSeconds",
        "hostUsers",
        "immutable",
        "maxSurge",
        "maxUnavailable",
        "minAvailable",
        "mode",
        "optional",
        "orphanDependents",
        "parallelism",
        "partition",
        "privileged",
        "publishNotReadyAddresses",
        "readOnlyRootFilesystem",
        "replicas",
        "revisionHistoryLimit",
        "runAsGroup",
        "runAsNonRoot",
        "runAsUser",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "suspend",
        "terminationGracePeriodSeconds",
        "tolerationSeconds",
        "ttlSecondsAfterFinished",
        "value",
    }
)


@functools.cache
def _messages() -> dict[str, dict[int, tuple[str, str, str]]]:
    text = (package_data.files("sandbox.apiserver.requests.representations") / "protobuf_fields.json").read_text()
    return {
        name: {int(number): tuple(entry) for number, entry in fields.items()}
        for name, fields in json.loads(text).items()
    }


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, integer or bytes) for each field of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: Any
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise IndexError("unexpected end of message")
            value, at = data[at : at + length], at + length
        elif wire == 1:
            value, at = data[at : at + 8], at + 8
        elif wire == 5:
            value, at = data[at : at + 4], at + 4
        else:
            raise ValueError(f"unsupported wire type {wire}")
        yield number, value


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _time(data: bytes, micro: bool) -> str | None:
    parts = dict(_fields(data))
    seconds, nanos = _signed(parts.get(1, 0)), parts.get(2, 0)
    if not parts:
        return None
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    if micro:
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{nanos // 1000:06d}Z"
    return rfc3339(moment)


def _special(name: str, data: bytes) -> tuple[bool, Any]:
    """(is it a type with its own JSON form?, that form)"""
    match name.rsplit(".", 1)[-1]:
        case "Time":
            return True, _time(data, micro=False)
        case "MicroTime":
            return True, _time(data, micro=True)
        case "Quantity":
            return True, dict(_fields(data)).get(1, b"0").decode()
        case "IntOrString":
            parts = dict(_fields(data))
            return True, parts.get(3, b"").decode() if parts.get(1) == 1 else _signed(parts.get(2, 0))
        case "RawExtension" | "FieldsV1":
            return True, json.loads(dict(_fields(data)).get(1, b"null") or b"null")
        case "ExtraValue" | "Verbs":
            return True, [value.decode() for _, value in _fields(data)]
        case _:
            return False, None


def _value(kind: str, raw: Any) -> Any:
    match kind:
        case "string":
            return raw.decode()
        case "bytes":
            return base64.b64encode(raw).decode()
        case "bool":
            return bool(raw)
        case "int32" | "int64":
            return _signed(raw)
        case "double":
            return struct.unpack("<d", raw)[0]
        case "float":
            return struct.unpack("<f", raw)[0]
        case _:
            special, value = _special(kind, raw)
            return value if special else _message(kind, raw)


def _message(name: str, data: bytes) -> Obj:
    fields = _messages()[name]
    result: Obj = {}
    for number, raw in _fields(data):
        entry = fields.get(number)
        if entry is None:
            continue
        key, shape, kind = entry
        if shape == "map":
            pair = dict(_fields(raw))
            empty: Any = b"" if kind in ("string", "bytes") or "." in kind else 0
            result.setdefault(key, {})[pair.get(1, b"").decode()] = _value(kind, pair.get(2, empty))
        elif shape == "list":
            result.setdefault(key, []).append(_value(kind, raw))
        elif shape == "inline":
            result.update(_value(kind, raw))
        else:
            value = _value(kind, raw)
            if value not in ("", None) and (value or key in _POINTERS or isinstance(value, (dict, list))):
                result[key] = value
    return result


def _message_name(api_version: str, kind: str) -> str:
    group, _, version = api_version.rpartition("/")
    if kind == "DeleteOptions":
        return "meta.v1.DeleteOptions"
    package = _PACKAGES.get(group) or group.split(".")[0]
    return f"{package}.{version}.{kind}"


def decode(body: bytes) -> Obj:
    """
    The object in a protobuf request body.

    :raises ApiError: 415 for a kind without a table, 400 for a body that is not protobuf.
    """
    if not body.startswith(_MAGIC):
        raise ApiError(400, "BadRequest", "provided data does not appear to be a protobuf message, expected prefix k8s")
    try:
        unknown = dict(_fields(body[len(_MAGIC) :]))
        type_meta = dict(_fields(unknown.get(1, b"")))
        api_version, kind = type_meta.get(1, b"").decode(), type_meta.get(2, b"").decode()
        name = _message_name(api_version, kind)
        if name not in _messages():
            raise ApiError(
                415,
                "UnsupportedMediaType",
                f"the sandbox does not decode {CONTENT_TYPE} of {api_version}, Kind={kind}; send JSON",
            )
        decoded = _message(name, unknown.get(2, b""))
    except (IndexError, ValueError, struct.error) as problem:
        raise ApiError(400, "BadRequest", f"malformed protobuf message: {problem}") from problem
    return {"apiVersion": api_version, "kind": kind, **decoded}
