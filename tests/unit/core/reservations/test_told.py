"""Who is told that a block ends."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.reservations.told import is_told

JOB: dict[str, Any] = {"metadata": {"ownerReferences": [{"kind": "Job"}]}, "status": {"phase": "Running"}}


def test_a_job_is_told_and_a_pod_without_a_controller_too() -> None:
    assert is_told(JOB)
    assert is_told({"metadata": {}, "status": {"phase": "Running"}})


@pytest.mark.parametrize(
    "pod",
    [
        {**JOB, "metadata": {"ownerReferences": [{"kind": "DaemonSet"}]}},
        {**JOB, "metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}},
        {**JOB, "metadata": {"labels": {"gpu-fleet.io/component": "placeholder"}}},
        {**JOB, "metadata": {"deletionTimestamp": "2026-11-30T12:00:00Z"}},
        {**JOB, "status": {"phase": "Succeeded"}},
    ],
    ids=["DaemonSet", "static", "ours", "terminating", "finished"],
)
def test_others_are_not(pod: dict[str, Any]) -> None:
    assert not is_told(pod)
