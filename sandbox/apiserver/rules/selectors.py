"""Label and field selectors (apimachinery pkg/labels, pkg/fields)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sandbox.apiserver.errors import bad_request
from sandbox.apiserver.jsontools import Obj, dig
from sandbox.apiserver.resources import Resource
from sandbox.apiserver.rules import labelselectors
from sandbox.apiserver.rules.labelselectors import LabelTest

Predicate = Callable[[Obj], bool]


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
            raise bad_request(_unsupported(resource, path))
        tests.append((path, operator != "!=", value))
    return lambda obj: all((_field_text(obj, path) == value) is wanted for path, wanted, value in tests)


def _unsupported(resource: Resource, path: str) -> str:
    """Each type converts its field labels itself, or leaves it to apimachinery pkg/runtime/scheme.go."""
    if resource.kind == "Job" and not resource.custom:
        return f'field label "{path}" not supported for batchv1.Job'
    if resource.custom or resource.kind in _FIELDS:
        return f"field label not supported: {path}"
    return f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"'


def parse(labels: str, fields: str, resource: Resource) -> Predicate | None:
    """Both selectors as one test of an object, or ``None`` if nothing is selected away."""
    if not labels and not fields:
        return None
    label_test = labelselectors.parse(labels)
    field_test = parse_fields(fields, resource)
    return lambda obj: label_test(obj["metadata"].get("labels") or {}) and field_test(obj)
