"""Revalidation: what is there is compared with the spec and proven again; nothing is bought, installed or corrected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import TriggerRule, cross_downstream

from gpu_fleet.operators.base import FREEZE_SPEC_TASK_ID
from gpu_fleet.operators.lock import ReleaseLockOperator
from gpu_fleet.operators.preflight.drift import CheckDriftOperator
from gpu_fleet.operators.spec import FreezeSpecOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.operators.validation.publish import PublishPoolOperator
from gpu_fleet.operators.validation.remediation import RemediateNodesOperator
from gpu_fleet.phases.common import Phase, end_run, settle
from gpu_fleet.phases.preflight import revalidation_preflight
from gpu_fleet.phases.validation import validation

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def revalidation_graph(spec: ClusterSpec) -> None:
    """preflight and turn -> drift check beside validation -> remediation -> publish, each pool on its own."""
    freeze = FreezeSpecOperator(task_id=FREEZE_SPEC_TASK_ID, cluster=spec.name, provisions=True)
    before = revalidation_preflight(spec)
    (turn,) = before.tails
    freeze >> before.heads
    # Beside the validation: what differs from the spec and what does not work are two questions, with two answers.
    drift = CheckDriftOperator(task_id="check_drift")
    turn >> drift
    tasks: list[Any] = [freeze, *before.tasks, drift]
    for name, phase in validation(spec, measure=True).items():
        turn >> phase.heads
        tasks += [*phase.tasks, _remediation(name, phase)]

    release = ReleaseLockOperator(task_id="release_turn").as_teardown()
    cross_downstream(settle(tasks), [release])
    tasks.append(release)
    end_run(tasks, [release], turn=turn.task_id)


def _remediation(pool: str, phase: Phase) -> RemediateNodesOperator:
    """Between a pool's last probe and its publication, which says with what the pool is left."""
    probes = [task for task in phase.tasks if isinstance(task, RunProbesOperator)]
    publish = [task for task in phase.tasks if isinstance(task, PublishPoolOperator)]
    remediate = RemediateNodesOperator(
        task_id="remediate", node_pool=pool, trigger_rule=TriggerRule.ALL_DONE, task_group=probes[0].task_group
    )
    cross_downstream(probes, [remediate])
    cross_downstream([remediate], publish)
    return remediate
