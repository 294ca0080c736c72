"""What a proof that fails tells the remediation: only what may be the release's fault."""

from __future__ import annotations

import pytest

from gpu_fleet.core.errors import DeadlinePassed
from gpu_fleet.core.verdict import progressing
from gpu_fleet.operators.helm.releases import SEEN_UNHEALTHY, ProveReleaseOperator
from gpu_fleet.triggers.waiting import deadline_error
from tests.unit.airflow_context import TaskInstance


@pytest.mark.parametrize(
    ("reason", "told"),
    [("NodeNotReady", False), ("GpuLost", False), ("SecondDevicePlugin", False), ("PluginStarting", True)],
)
def test_what_was_waited_for_until_the_deadline_decides(reason: str, told: bool) -> None:
    """A node that reboots at the end of the wait must cost no roll-back."""
    operator, ti = ProveReleaseOperator(task_id="prove", component="device-plugin"), TaskInstance()
    with pytest.raises(DeadlinePassed), operator._reporting({"ti": ti}):
        raise deadline_error("device_plugin_proven", progressing(reason, "the gate's words"))
    assert (SEEN_UNHEALTHY in ti.xcoms) is told
