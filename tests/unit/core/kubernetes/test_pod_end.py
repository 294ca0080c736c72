from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.kubernetes.pod_end import grace_of, has_stopped


@pytest.mark.parametrize(
    ("spec", "asked", "seconds"),
    [
        ({}, -1, 30.0),
        ({"terminationGracePeriodSeconds": 600}, -1, 600.0),
        ({"terminationGracePeriodSeconds": 0}, -1, 0.0),
        ({"terminationGracePeriodSeconds": 600}, 5, 5.0),
        ({"terminationGracePeriodSeconds": 600}, 0, 0.0),
    ],
)
def test_the_grace_of_a_pod(spec: dict[str, Any], asked: int, seconds: float) -> None:
    assert grace_of({"metadata": {}, "spec": spec}, asked) == seconds


@pytest.mark.parametrize(
    ("status", "stopped"),
    [
        ({}, False),
        ({"phase": "Running"}, False),
        ({"phase": "Succeeded"}, True),
        ({"phase": "Failed"}, True),
        ({"phase": "Running", "containerStatuses": [{"state": {"terminated": {}}}]}, True),
        ({"containerStatuses": [{"state": {"terminated": {}}}, {"state": {"running": {}}}]}, False),
        ({"containerStatuses": [{"state": {"waiting": {}}}]}, False),
        ({"containerStatuses": [{}]}, False),
    ],
)
def test_whether_anything_of_a_pod_still_runs(status: dict[str, Any], stopped: bool) -> None:
    assert has_stopped({"metadata": {}, "status": status}) is stopped
