"""Custom resources against their CRD's openAPIV3Schema: defaulting and validation with the server's words.

Texts: kube-openapi pkg/validation/errors and apiextensions-apiserver pkg/apiserver/validation/validation.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from sandbox.apiserver.errors import Cause, invalid_value, not_supported, required
from sandbox.apiserver.jsontools import Obj, clone, equal

_DURATION = re.compile(r"^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$")
_DATE_TIME = re.compile(r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$")


UNCHECKED = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation"
)
# Schema errors that keep a server from evaluating CEL (apiextensions-apiserver pkg/registry/customresource/strategy.go
# ``hasBlockingErr``).
_BLOCKING = frozenset(
    {
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    }
)


def _has_rules(schema: Any) -> bool:
    if isinstance(schema, dict):
        return bool(schema.get("x-kubernetes-validations")) or any(map(_has_rules, schema.values()))
    return isinstance(schema, list) and any(map(_has_rules, schema))


def keeps_rules_unchecked(schema: Obj, causes: list[Cause]) -> bool:
    """Whether the violations are such that the schema's CEL rules, if it has any, are not evaluated."""
    return any(cause.type in _BLOCKING for cause in causes) and _has_rules(schema)


@lru_cache(maxsize=512)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def fill_defaults(schema: Obj, value: Any) -> None:
    """Defaults of absent members, in place, at every depth."""
    if isinstance(value, dict):
        properties: Obj = schema.get("properties") or {}
        for key, child in properties.items():
            if "default" in child and (key not in value or (value[key] is None and not child.get("nullable"))):
                value[key] = clone(child["default"])
            if isinstance(value.get(key), (dict, list)):
                fill_defaults(child, value[key])
        additional = schema.get("additionalProperties")
        if isinstance(additional, dict):
            for key, member in value.items():
                if key not in properties:
                    fill_defaults(additional, member)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            fill_defaults(schema["items"], item)


def validate(schema: Obj, value: Any, path: str = "") -> Iterator[Cause]:
    """Every violation, in the order of the schema's members."""
    if value is None and schema.get("nullable"):
        return
    wrong = _type_problem(schema, value, path)
    if wrong is not None:
        yield wrong
        return
    if schema.get("enum") and not any(equal(value, allowed) for allowed in schema["enum"]):
        shown = [item if isinstance(item, str) else json.dumps(item) for item in schema["enum"]]
        yield not_supported(path, value, shown)
    if isinstance(value, str):
        yield from _string(schema, value, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _number(schema, value, path)
    elif isinstance(value, list):
        yield from _array(schema, value, path)
    elif isinstance(value, dict):
        yield from _object(schema, value, path)
    yield from _combinations(schema, value, path)


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if value is None:
        return "null"
    return "array" if isinstance(value, list) else "object"


def _type_problem(schema: Obj, value: Any, path: str) -> Cause | None:
    found = _type_name(value)
    if schema.get("x-kubernetes-int-or-string"):
        if found in ("integer", "string"):
            return None
        return Cause("FieldValueTypeInvalid", path, found, f'{path} in body must be of type integer,string: "{found}"')
    wanted = schema.get("type")
    if not wanted or wanted == found or (wanted == "number" and found == "integer"):
        return None
    if wanted == "integer" and found == "number" and float(value).is_integer():
        return None
    return Cause("FieldValueTypeInvalid", path, found, f'{path} in body must be of type {wanted}: "{found}"')


def _string(schema: Obj, value: str, path: str) -> Iterator[Cause]:
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        yield Cause("FieldValueTooLong", path, value, f"may not be more than {schema['maxLength']} bytes")
    if "minLength" in schema and len(value) < schema["minLength"]:
        detail = f"{path} in body should be at least {schema['minLength']} chars long"
        yield invalid_value(path, value, detail)
    pattern = schema.get("pattern")
    if pattern and not _pattern(pattern).search(value):
        yield invalid_value(path, value, f"{path} in body should match '{pattern}'")
    if schema.get("format") == "duration" and not _DURATION.match(value):
        yield invalid_value(path, value, f'{path} in body must be of type duration: "{value}"')
    if schema.get("format") == "date-time" and not _DATE_TIME.match(value):
        yield invalid_value(path, value, f'{path} in body must be of type date-time: "{value}"')


def _number(schema: Obj, value: float, path: str) -> Iterator[Cause]:
    if "maximum" in schema and value > schema["maximum"]:
        yield invalid_value(path, value, f"{path} in body should be less than or equal to {schema['maximum']}")
    if "minimum" in schema and value < schema["minimum"]:
        yield invalid_value(path, value, f"{path} in body should be greater than or equal to {schema['minimum']}")


def _array(schema: Obj, value: list[Any], path: str) -> Iterator[Cause]:
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        yield Cause("FieldValueTooMany", path, len(value), f"must have at most {schema['maxItems']} items")
    if "minItems" in schema and len(value) < schema["minItems"]:
        detail = f"{path} in body should have at least {schema['minItems']} items"
        yield invalid_value(path, len(value), detail)
    keys: list[str] = schema.get("x-kubernetes-list-map-keys") or []
    seen: list[Any] = []
    unique = schema.get("x-kubernetes-list-type") in ("map", "set")
    items = schema.get("items")
    for index, item in enumerate(value):
        if unique:
            identity = {key: item.get(key) for key in keys} if keys and isinstance(item, dict) else item
            if identity in seen:
                yield Cause("FieldValueDuplicate", f"{path}[{index}]", identity)
            seen.append(identity)
        if isinstance(items, dict):
            yield from validate(items, item, f"{path}[{index}]")


def _object(schema: Obj, value: Obj, path: str) -> Iterator[Cause]:
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        yield Cause("FieldValueTooMany", path, len(value), f"must have at most {schema['maxProperties']} items")
    if "minProperties" in schema and len(value) < schema["minProperties"]:
        detail = f"{path} in body should have at least {schema['minProperties']} properties"
        yield invalid_value(path, len(value), detail)
    for key in schema.get("required") or []:
        if key not in value:
            yield required(f"{path}.{key}" if path else key)
    properties: Obj = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    for key, member in value.items():
        child = properties.get(key, additional if isinstance(additional, dict) else None)
        if child is not None:
            where = f"{path}.{key}" if path else key
            yield from validate(child, member, where)


def _combinations(schema: Obj, value: Any, path: str) -> Iterator[Cause]:
    for part in schema.get("allOf") or []:
        yield from validate(part, value, path)
    for word in ("anyOf", "oneOf"):
        options = schema.get(word)
        if not options or schema.get("x-kubernetes-int-or-string"):
            continue
        passing = sum(1 for option in options if next(validate(option, value, path), None) is None)
        if passing == 0 or (word == "oneOf" and passing != 1):
            rule = "one and only one schema (oneOf)" if word == "oneOf" else "at least one schema (anyOf)"
            shown = f'"{path}" must validate {rule}'
            yield invalid_value(path, "" if isinstance(value, (dict, list)) else value, shown)
    banned = schema.get("not")
    if isinstance(banned, dict) and next(validate(banned, value, path), None) is None:
        yield invalid_value(path, value, f'"{path}" must not validate the schema (not)')
