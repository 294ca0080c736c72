"""Preflight: everything that can be known to be wrong before anything is changed, then the cluster's turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import TaskGroup

from gpu_fleet.operators.preflight import CheckAwsOperator, CheckToolsOperator
from gpu_fleet.operators.turn import AcquireTurnOperator
from gpu_fleet.phases.common import Phase
from gpu_fleet.sensors.gate import GateSensor

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def preflight(spec: ClusterSpec) -> Phase:
    """Tools, AWS identity and offers, cluster ACTIVE: side by side; then the turn."""
    with TaskGroup("preflight", tooltip="What can be known to be wrong before anything is changed"):
        tools = CheckToolsOperator(task_id="check_tools")
        aws = CheckAwsOperator(task_id="check_aws")
        active = GateSensor(
            task_id="cluster_active",
            gate="cluster_active",
            args={"cluster": spec.cluster.name, "version": spec.cluster.version},
        )
        turn = AcquireTurnOperator(task_id="acquire_turn")
        [tools, aws, active] >> turn
    return Phase(heads=[tools, aws, active], tails=[turn], tasks=[tools, aws, active, turn])
