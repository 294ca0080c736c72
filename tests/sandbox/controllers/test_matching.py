from __future__ import annotations

from typing import Any

import pytest

from sandbox.controllers.matching import node_matches, scaled, selects, tolerates, untolerated
from tests.sandbox.controllers import builders


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "In", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["0"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Lt", "values": ["1"]}]}, False),
    ],
)
def test_label_selector(selector: dict[str, Any] | None, matches: bool) -> None:
    assert selects(selector, {"a": "1"}) is matches


def test_unknown_operator_is_an_error() -> None:
    with pytest.raises(ValueError, match="Near"):
        selects({"matchExpressions": [{"key": "a", "operator": "Near"}]}, {})


def _affinity(*terms: dict[str, Any]) -> dict[str, Any]:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"affinity": {"nodeAffinity": required}}


@pytest.mark.parametrize(
    ("spec", "matches"),
    [
        ({}, True),
        ({"nodeSelector": {"kubernetes.io/hostname": "n1"}}, True),
        ({"nodeSelector": {"kubernetes.io/hostname": "n2"}}, False),
        (_affinity({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), True),
        (_affinity({"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}), False),
        (_affinity({"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}, {"matchExpressions": []}), False),
        (
            _affinity(
                {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]},
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]},
            ),
            True,
        ),
    ],
)
def test_node_selection(spec: dict[str, Any], matches: bool) -> None:
    assert node_matches(spec, builders.node("n1")) is matches


TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        ({"key": "nvidia.com/gpu", "operator": "Exists"}, True),
        ({"key": "nvidia.com/gpu", "value": "true"}, True),
        ({"key": "nvidia.com/gpu", "value": "false"}, False),
        ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"operator": "Exists"}, True),
        ({"key": "other", "operator": "Exists"}, False),
        ({}, False),
    ],
)
def test_toleration(toleration: dict[str, Any], covers: bool) -> None:
    assert tolerates(toleration, TAINT) is covers
    assert (untolerated([TAINT], [toleration], ("NoSchedule",)) is None) is covers


def test_taint_of_another_effect_is_not_looked_at() -> None:
    assert untolerated([TAINT], [], ("NoExecute",)) is None


@pytest.mark.parametrize(
    ("value", "round_up", "count"),
    [(2, True, 2), ("25%", True, 3), ("25%", False, 2), (None, True, 1)],
)
def test_count_or_percentage(value: int | str | None, round_up: bool, count: int) -> None:
    assert scaled(value, 9, round_up=round_up, default=1) == count
