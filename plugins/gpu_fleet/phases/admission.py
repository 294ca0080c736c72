"""Admission: the proof of nodes that Karpenter has added to gated pools for users' pods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup, TriggerRule

from gpu_fleet.operators.admission.admit import AdmitNodesOperator
from gpu_fleet.operators.admission.remedy import RemediateUnprovenOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.phases.common import Phase
from gpu_fleet.phases.validation import probe_of

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def admission(spec: ClusterSpec) -> dict[str, Phase]:
    """One chain per gated pool, side by side: protect the nodes that take no pods yet, probe them, open those that
    passed, and take the others out of service as the spec allows. Nothing is measured, bought or published: users wait.
    """
    phases: dict[str, Phase] = {}
    with TaskGroup("admission", tooltip="Proof of nodes that take no pods yet"):
        for pool in spec.node_pools:
            if not spec.gated(pool):
                continue
            with TaskGroup(f"pool_{pool.name}"):
                protect = ProtectNodesOperator(task_id="protect_nodes", node_pool=pool.name, only_unproven=True)
                kind = str(probe_of(spec, pool))
                probe = RunProbesOperator(task_id=kind, node_pool=pool.name, probe=kind)
                admit = AdmitNodesOperator(
                    task_id="admit_nodes", node_pool=pool.name, without_lock=True, trigger_rule=TriggerRule.ALL_DONE
                )
                remedy = RemediateUnprovenOperator(
                    task_id="remediate", node_pool=pool.name, trigger_rule=TriggerRule.ALL_DONE
                )
                clean = CleanUpValidationOperator(task_id="clean_up", node_pool=pool.name).as_teardown()
                protect >> probe >> admit >> remedy >> clean
            tasks: list[Any] = [protect, probe, admit, remedy, clean]
            phases[pool.name] = Phase(heads=[protect], tails=[clean], tasks=tasks)
    return phases
