"""As kubernetes-sigs/karpenter v1.14.1 ``pkg/utils/pod/scheduling.go``, ``IsDoNotDisruptActive``."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.kubernetes.do_not_disrupt import protected_value

STARTED = "2026-01-01T00:00:00Z"
AN_HOUR_LATER = 1767225600.0 + 3600


def pod(value: str | None, started: str | None = STARTED) -> dict[str, Any]:
    annotations = {} if value is None else {"karpenter.sh/do-not-disrupt": value}
    return {"metadata": {"name": "p", "annotations": annotations}, "status": {"startTime": started} if started else {}}


@pytest.mark.parametrize(
    ("value", "protects"),
    [
        (None, False),
        ("true", True),
        ("false", False),
        ("True", False),
        ("", False),
        ("72h", True),
        ("1h30m", True),
        ("1.5h", True),
        ("59m", False),
        ("3600s", False),
        ("3601s", True),
        ("0s", False),
        ("-2h", False),
        ("2d", False),
        ("2", False),
        ("72h\n", False),
    ],
)
def test_a_pod_is_protected_by_true_or_for_a_time_since_its_start(value: str | None, protects: bool) -> None:
    assert protected_value(pod(value), AN_HOUR_LATER) == (value if protects else None)


def test_without_start_or_clock_a_time_is_not_over() -> None:
    assert protected_value(pod("5m", None), AN_HOUR_LATER) == "5m"
    assert protected_value(pod("5m")) == "5m"
