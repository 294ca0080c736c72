"""Selectors, node affinity, taints and tolerations: the small comparisons that many controllers share.

Sources: kubernetes/kubernetes ``staging/src/k8s.io/apimachinery/pkg/labels``,
``staging/src/k8s.io/component-helpers/scheduling/corev1``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Object = dict[str, Any]


def _holds(labels: dict[str, str], key: str, operator: str, values: list[str]) -> bool:
    match operator:
        case "In":
            return labels.get(key) in values if key in labels else False
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case "Gt" | "Lt":
            try:
                have, bound = int(labels[key]), int(values[0])
            except (KeyError, ValueError, IndexError):
                return False
            return have > bound if operator == "Gt" else have < bound
    raise ValueError(f"unknown selector operator {operator!r}")


def selects(selector: Object | None, labels: dict[str, str] | None) -> bool:
    """Does a LabelSelector match? None matches nothing, an empty selector everything."""
    if selector is None:
        return False
    labels = labels or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(
        _holds(labels, rule["key"], rule["operator"], rule.get("values") or [])
        for rule in selector.get("matchExpressions") or []
    )


def node_term_matches(term: Object, node: Object) -> bool:
    """One nodeSelectorTerm; an empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False
    labels = node["metadata"].get("labels") or {}
    names = {"metadata.name": node["metadata"]["name"]}
    return all(_holds(labels, rule["key"], rule["operator"], rule.get("values") or []) for rule in expressions) and all(
        _holds(names, rule["key"], rule["operator"], rule.get("values") or []) for rule in fields
    )


def node_matches(spec: Object, node: Object) -> bool:
    """A pod spec's nodeSelector and required node affinity."""
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(node_term_matches(term, node) for term in required.get("nodeSelectorTerms") or [])


def tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if not toleration.get("key") and toleration.get("operator") != "Exists":
        return False
    return toleration.get("operator") == "Exists" or (toleration.get("value") or "") == (taint.get("value") or "")


def untolerated(
    taints: Iterable[Object] | None, tolerations: list[Object] | None, effects: tuple[str, ...]
) -> Object | None:
    """The first taint of one of ``effects`` that no toleration covers."""
    for taint in taints or []:
        if taint["effect"] in effects and not any(tolerates(each, taint) for each in tolerations or []):
            return taint
    return None


def scaled(value: int | str | None, total: int, *, round_up: bool, default: int | str) -> int:
    """An IntOrString: a count, or a percentage of ``total``."""
    value = default if value is None else value
    if isinstance(value, str) and value.endswith("%"):
        product = int(value[:-1]) * total
        return -(-product // 100) if round_up else product // 100
    return int(value)
