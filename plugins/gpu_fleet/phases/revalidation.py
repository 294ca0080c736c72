"""Revalidation: what is there is compared with the spec and proven again; nothing is bought, installed or corrected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import TriggerRule, cross_downstream

from gpu_fleet.operators.base import FREEZE_SPEC_TASK_ID
from gpu_fleet.operators.drift import CheckDriftOperator
from gpu_fleet.operators.publish import PublishPoolOperator
from gpu_fleet.operators.remediation import RemediateNodesOperator
from gpu_fleet.operators.spec import FreezeSpecOperator
from gpu_fleet.operators.turn import ReleaseTurnOperator
from gpu_fleet.operators.validation import RunProbesOperator
from gpu_fleet.operators.validation_cleanup import CleanUpValidationOperator
from gpu_fleet.operators.verdict import RunVerdictOperator
from gpu_fleet.phases.common import Phase, settle
from gpu_fleet.phases.preflight import revalidation_preflight
from gpu_fleet.phases.validation import validation

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def revalidation_graph(spec: ClusterSpec) -> None:
    """preflight and turn -> drift check beside validation -> remediation -> publish, each pool on its own.

    Clean-up, the turn's release and the verdict are *teardown* tasks of Airflow: when a person marks a run failed (or
    success), Airflow ends what runs and skips what waits, except teardowns (``airflow.api.common.mark_tasks``). So
    probes, protection and turn are given back also then. What that changes, and what it does not:

    - They have no setup task. With one, a teardown is not run if that failed, and a half-done protection would stay.
      Without one the rule ``all_done_setup_success``, which every teardown has, is ``all_done``.
    - Airflow leaves teardowns out when it takes a run's state from the leaves. ``run_verdict`` must count, so it is one
      with ``on_failure_fail_dagrun``; a failed clean-up counts through it. Without being a teardown it would be skipped
      in a run that was marked failed, and a run whose one counted leaf is skipped ends as a *success*.
    - :func:`settle` sees a teardown as what it is here: a task that is the end of its chain.

    Beyond their reach are a run that ``dagrun_timeout`` ends and a machine that dies: then probes end by themselves
    (``activeDeadlineSeconds``), the turn is stale as its run is over, and the next run's clean-up removes the rest.
    """
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
        for task in phase.tasks:
            if isinstance(task, CleanUpValidationOperator):
                task.as_teardown()

    release = ReleaseTurnOperator(task_id="release_turn").as_teardown()
    cross_downstream(settle(tasks), [release])
    tasks.append(release)
    verdict = RunVerdictOperator(task_id="run_verdict", watched=[task.task_id for task in tasks], turn=turn.task_id)
    release >> verdict.as_teardown(on_failure_fail_dagrun=True)


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
