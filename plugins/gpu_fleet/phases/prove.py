"""Prove: mark the device plugin's revision as proven in its ledger if nodes run it, or roll it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from airflow.sdk import TaskGroup, TriggerRule

from gpu_fleet.operators.helm.releases import ProveReleaseOperator, RemediateReleaseOperator
from gpu_fleet.operators.preconditions import RunIf
from gpu_fleet.phases.common import Phase

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def prove(spec: ClusterSpec, asked: Mapping[str, Phase]) -> Phase:
    """Proof or rollback of the device plugin; empty if the plugin is not ours, or if no pool wants a node to prove it.
    Nodes with a plugin of their AMI prove nothing about ours.

    One pool without capacity must not keep another pool's GPUs unproven: it is enough that one pool got its nodes. The
    rollback waits for all pools: if it were decided at the first failure, before any other pool has a node, a broken
    plugin would look innocent, and no later task would check it again.

    :param asked: pool name to the phase that waits for its capacity.
    """
    served = [pool for pool in spec.node_pools if pool.wanted_nodes and not pool.built_in_plugin]
    awaits = [task for pool in served for task in asked[pool.name].tails]
    if not spec.device_plugin.manage or not awaits:
        return Phase()
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
