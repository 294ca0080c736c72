"""Label and field selectors (apimachinery pkg/labels, pkg/fields)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sandbox.apiserver.errors import bad_request
from sandbox.apiserver.jsontools import Obj, dig
from sandbox.apiserver.resources import Resource

Predicate = Callable[[Obj], bool]

_SET = re.compile(r"^\s*([^\s!=<>(),]+)\s+(in|notin)\s*\(([^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*([^\s!=<>(),]+)\s*(==|=|!=)\s*([^\s!=<>(),]*)\s*$")
_COMPARE = re.compile(r"^\s*([^\s!=<>(),]+)\s*(<|>)\s*(-?\d+)\s*$")
_EXISTS = re.compile(r"^\s*(!?)\s*([^\s!=<>(),]+)\s*$")

LabelTest = Callable[[dict[str, str]], bool]


def _split(text: str) -> list[str]:
    """Split at commas that are not inside parentheses."""
    return [part for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def _label_requirement(text: str, whole: str) -> LabelTest:
    if match := _SET.match(text):
        key, operator, raw = match.groups()
        values = {value.strip() for value in raw.split(",")}
        if operator == "in":
            return lambda labels: key in labels and labels[key] in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.match(text):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _COMPARE.match(text):
        key, operator, number = match.groups()
        bound = int(number)

        def compare(labels: dict[str, str]) -> bool:
            found = labels.get(key, "")
            if not re.fullmatch(r"-?\d+", found):
                return False
            return int(found) > bound if operator == ">" else int(found) < bound

        return compare
    if match := _EXISTS.match(text):
        absent, key = match.groups()
        return (lambda labels: key not in labels) if absent else (lambda labels: key in labels)
    raise bad_request(f"unable to parse requirement: found '{text}', in \"{whole}\"")


def parse_labels(text: str) -> LabelTest:
    """A test of a label mapping; an empty selector matches everything."""
    tests = [_label_requirement(part, text) for part in _split(text)]
    return lambda labels: all(test(labels) for test in tests)


def label_selector(selector: Any) -> LabelTest:
    """A ``metav1.LabelSelector`` as a test; ``None`` selects nothing, an empty one everything."""
    if selector is None:
        return lambda _: False
    wanted: dict[str, str] = selector.get("matchLabels") or {}
    tests: list[LabelTest] = []
    for expression in selector.get("matchExpressions") or []:
        tests.append(_expression(expression["key"], expression["operator"], expression.get("values") or []))
    return lambda labels: (
        all(labels.get(key) == value for key, value in wanted.items()) and all(test(labels) for test in tests)
    )


def _expression(key: str, operator: str, values: list[str]) -> LabelTest:
    match operator:
        case "In":
            return lambda labels: key in labels and labels[key] in values
        case "NotIn":
            return lambda labels: labels.get(key) not in values
        case "Exists":
            return lambda labels: key in labels
        case "DoesNotExist":
            return lambda labels: key not in labels
        case _:
            raise bad_request(f'"{operator}" is not a valid label selector operator')


# Fields that a real server can select on (pkg/registry/*/strategy.go and apis/core/v1/conversion.go).
_FIELDS: dict[str, frozenset[str]] = {
    "Pod": frozenset(
        {
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        }
    ),
    "Node": frozenset({"spec.unschedulable"}),
    "Namespace": frozenset({"status.phase"}),
    "Secret": frozenset({"type"}),
    "Event": frozenset(
        {
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        }
    ),
    "Job": frozenset({"status.successful"}),
    "ReplicaSet": frozenset({"status.replicas"}),
    "ReplicationController": frozenset({"status.replicas"}),
}
_COMMON = frozenset({"metadata.name", "metadata.namespace"})
_DEFAULTS = {"spec.unschedulable": "false", "spec.hostNetwork": "false"}


def _field_text(obj: Obj, path: str) -> str:
    value = dig(obj, *path.split("."))
    if path == "source":
        value = dig(obj, "source", "component") or obj.get("reportingComponent")
    if value is None:
        return _DEFAULTS.get(path, "")
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_fields(text: str, resource: Resource) -> Predicate:
    """A test of an object by its fields; only what a real server supports, else 400."""
    tests: list[tuple[str, bool, str]] = []
    allowed = _COMMON | _FIELDS.get(resource.kind, frozenset())
    for column in resource.columns:
        if "selectable" in column:
            allowed |= {column["selectable"]}
    for part in text.split(","):
        if not part:
            continue
        match = re.match(r"^([^=!]+)(!=|==|=)(.*)$", part)
        if match is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        path, operator, value = match.groups()
        if path not in allowed:
            label = f"field label not supported: {path}"
            raise bad_request(label if not resource.custom else f"{label}")
        tests.append((path, operator != "!=", value))
    return lambda obj: all((_field_text(obj, path) == value) is wanted for path, wanted, value in tests)


def parse(labels: str, fields: str, resource: Resource) -> Predicate | None:
    """Both selectors as one test of an object, or ``None`` if nothing is selected away."""
    if not labels and not fields:
        return None
    label_test = parse_labels(labels)
    field_test = parse_fields(fields, resource)
    return lambda obj: label_test(obj["metadata"].get("labels") or {}) and field_test(obj)
