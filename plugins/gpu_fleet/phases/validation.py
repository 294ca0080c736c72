"""Validation: protect the nodes, free them of placeholders, probe every GPU, tidy up whatever happened, publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import TaskGroup, TriggerRule

from gpu_fleet.operators.capacity import ReleasePlaceholdersOperator
from gpu_fleet.operators.publish import PublishPoolOperator
from gpu_fleet.operators.validation import CleanUpValidationOperator, ProtectNodesOperator, RunProbesOperator
from gpu_fleet.phases.common import Phase

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def validation(spec: ClusterSpec) -> dict[str, Phase]:
    """One chain per pool, side by side; a pool that fails does not touch the others' verdicts."""
    phases: dict[str, Phase] = {}
    with TaskGroup("validation", tooltip="Proof that GPUs work and are shared as promised"):
        for pool in spec.node_pools:
            with TaskGroup(f"pool_{pool.name}"):
                protect = ProtectNodesOperator(task_id="protect_nodes", node_pool=pool.name)
                free = ReleasePlaceholdersOperator(task_id="release_placeholders", node_pool=pool.name)
                smoke = RunProbesOperator(task_id="vectoradd", node_pool=pool.name, probe="vectoradd")
                sharing = RunProbesOperator(
                    task_id="sharing" if pool.shared else "exclusive",
                    node_pool=pool.name,
                    probe="sharing" if pool.shared else "exclusive",
                )
                clean = CleanUpValidationOperator(
                    task_id="clean_up", node_pool=pool.name, trigger_rule=TriggerRule.ALL_DONE
                )
                publish = PublishPoolOperator(task_id="publish", node_pool=pool.name, trigger_rule=TriggerRule.ALL_DONE)
                protect >> free >> smoke >> sharing >> clean
                sharing >> publish
            tasks = [protect, free, smoke, sharing, clean, publish]
            phases[pool.name] = Phase(heads=[protect], tails=[clean, publish], tasks=tasks)
    return phases
