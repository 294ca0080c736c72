"""What a revalidation does besides the proofs: the drift check, and the remediation of nodes that fail."""

from __future__ import annotations

from collections.abc import Mapping

from airflow.sdk import TriggerRule, cross_downstream

from gpu_fleet.operators.preflight.drift import CheckDriftOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.operators.validation.publish import PublishPoolOperator
from gpu_fleet.operators.validation.remediation import RemediateNodesOperator
from gpu_fleet.phases.common import Phase


def drift_check() -> Phase:
    """The manifests and Helm releases against the spec, in one task."""
    return Phase.of(CheckDriftOperator(task_id="check_drift"))


def with_remediation(validated: Mapping[str, Phase]) -> dict[str, Phase]:
    """The pools' validation with a remediation between the last probe and the publication, which reports its outcome.

    :param validated: pool name to its phase.
    """
    return {pool: _with_remediation(pool, phase) for pool, phase in validated.items()}


def _with_remediation(pool: str, phase: Phase) -> Phase:
    probes = [task for task in phase.tasks if isinstance(task, RunProbesOperator)]
    publish = [task for task in phase.tasks if isinstance(task, PublishPoolOperator)]
    remediate = RemediateNodesOperator(
        task_id="remediate", node_pool=pool, trigger_rule=TriggerRule.ALL_DONE, task_group=probes[0].task_group
    )
    cross_downstream(probes, [remediate])
    cross_downstream([remediate], publish)
    return Phase(phase.heads, phase.tails, [*phase.tasks, remediate])
