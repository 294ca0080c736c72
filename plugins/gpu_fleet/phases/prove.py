"""Prove: the ledger's entry 'this revision worked', written only when it did; and the roll-back when it did not."""

from __future__ import annotations

from typing import Any

from airflow.sdk import TaskGroup, TriggerRule

from gpu_fleet.operators.helm.releases import ProveReleaseOperator, RemediateReleaseOperator
from gpu_fleet.operators.preconditions import RunIf
from gpu_fleet.phases.common import Phase


def prove(awaits: list[Any]) -> Phase:
    """
    :param awaits: the tasks that wait for capacity, one per pool.

    One pool without capacity must not keep another pool's GPUs unproven: it is enough that one pool got its nodes. The
    roll-back waits for all of them: judged at the first failure, while no node of another pool is there to tell, a
    broken plugin would look innocent, and nobody would ask again.
    """
    with TaskGroup("prove", tooltip="Mark the device plugin's revision proven, or roll it back"):
        proof = ProveReleaseOperator(
            task_id="prove_device_plugin",
            component="device-plugin",
            trigger_rule=TriggerRule.ALL_DONE,
            run_if=RunIf.ANY_SUCCEEDED,
        )
        remediate = RemediateReleaseOperator(
            task_id="remediate_device_plugin",
            component="device-plugin",
            trigger_rule=TriggerRule.ALL_DONE,
            run_if=RunIf.ANY_FAILED,
        )
        for task in awaits:
            task >> [proof, remediate]
        proof >> remediate
    return Phase(heads=[proof], tails=[proof], tasks=[proof, remediate])
