"""What the phases share: how they are chained, what a join must wait for, and how a run ends, also by hand.

When a person marks a run failed (or success), Airflow ends what runs and skips what waits, except *teardown* tasks
(``airflow.api.common.mark_tasks``). So clean-up, the release of the cluster lock and the verdict are such tasks:
probes, placeholders, protection and lock are released then, too. What that changes, and what it does not:

- They have no setup task. A teardown does not run if its setup failed, and a half-done protection would stay. Without
  a setup, the rule ``all_done_setup_success``, which every teardown has, is ``all_done``.
- Airflow leaves teardowns out when it takes a run's state from the leaves. ``run_verdict`` must count, so it is one
  with ``on_failure_fail_dagrun``; a failed clean-up counts through it. If it were no teardown, it would be skipped in a
  run that was marked failed, and a run whose only counted leaf is skipped ends as a *success*.
- :func:`chain_ends` treats a teardown as what it is here: a task that ends its chain.

Two cases are beyond their reach: a run that ``dagrun_timeout`` ends, and a machine that dies. Then probes and
placeholders end by themselves (``activeDeadlineSeconds``), the lock is stale because its run is over, and the clean-up
of the next run removes the rest, whichever run left it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import TriggerRule, cross_downstream

from gpu_fleet.operators.base import FREEZE_SPEC_TASK_ID
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.lock import ReleaseLockOperator
from gpu_fleet.operators.spec import FreezeSpecOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.verdict import RunVerdictOperator, TornDown

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

After = TypeVar("After", bound="Phase | Sequence[Phase]")


@dataclass(frozen=True)
class Phase:
    """A built phase. ``a >> b`` lets every head of ``b`` wait for every tail of ``a``, as with tasks.

    :ivar heads: tasks without an upstream inside the phase.
    :ivar tails: tasks that later phases wait for.
    :ivar tasks: every task of the phase, for joins and for the run's verdict.
    :ivar beside: tasks for which only the ends of the next phases wait, and not their beginnings.
    """

    heads: list[Any] = field(default_factory=list)
    tails: list[Any] = field(default_factory=list)
    tasks: list[Any] = field(default_factory=list)
    beside: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, task: Any) -> Phase:
        """A phase of one task."""
        return cls([task], [task], [task])

    def __rshift__(self, after: After) -> After:
        for phase in [after] if isinstance(after, Phase) else after:
            cross_downstream(self.tails, phase.heads)
            if self.beside:
                cross_downstream(self.beside, phase.tails)
        return after

    def __rrshift__(self, before: Iterable[Phase]) -> Phase:
        for phase in before:
            cross_downstream(phase.tails, self.heads)
        return self


def chain_ends(tasks: Iterable[Any]) -> list[Any]:
    """The tasks that a join with trigger rule ``all_done`` must wait for, so that none of ``tasks`` still runs then.

    A task that joins several chains is ``upstream_failed`` as soon as *one* of them fails, while the others still run.
    So a join must wait for the end of every chain: the leaves, and each upstream of a task that has several.
    """
    inside = {task.task_id: task for task in tasks}
    ends: dict[str, Any] = {}
    for task in inside.values():
        if not any(task_id in inside for task_id in task.downstream_task_ids):
            ends[task.task_id] = task
        if len(task.upstream_task_ids) > 1:
            ends.update({task_id: inside[task_id] for task_id in task.upstream_task_ids if task_id in inside})
    return [ends[task_id] for task_id in sorted(ends)]


def freeze_spec(spec: ClusterSpec, *, provisions: bool = False) -> Phase:
    """The run's first task: it pins the run to the cluster spec.

    :param provisions: see :class:`FreezeSpecOperator`.
    """
    return Phase.of(FreezeSpecOperator(task_id=FREEZE_SPEC_TASK_ID, cluster=spec.name, provisions=provisions))


def release_turn(phases: Iterable[Phase]) -> Phase:
    """Releases the cluster lock when all tasks of these phases are over, whatever became of them."""
    release = ReleaseLockOperator(task_id="release_turn").as_teardown()
    cross_downstream(chain_ends(task for phase in phases for task in phase.tasks), [release])
    return Phase.of(release)


def end_run(
    phases: Iterable[Phase], last: Iterable[Phase], *, turn: str = "", torn_down: TornDown | None = None
) -> None:
    """The run's last two tasks: one that shows that the run reached its end, and the verdict.

    If a run is marked failed while none of its tasks runs (they are queued, or wait for a retry), Airflow keeps no
    trace of that but skipped tasks, and a verdict that looked for failures alone would make the run a success.
    ``reached_end`` does nothing, costs no worker, and cannot be skipped in any other way. The verdict waits for
    ``last`` as well: teardowns may still run when ``reached_end`` has been skipped.

    :param phases: all phases of the run.
    :param last: those after which no task still runs, in a run that is ended by hand, too.
    :param turn: see :class:`RunVerdictOperator`.
    :param torn_down: see :class:`RunVerdictOperator`.
    """
    tasks = [task for phase in phases for task in phase.tasks]
    tails = [task for phase in last for task in phase.tails]
    end = EmptyOperator(task_id="reached_end", trigger_rule=TriggerRule.ALL_DONE)
    watched = [task.task_id for task in [*tasks, end]]
    verdict = RunVerdictOperator(
        task_id="run_verdict",
        watched=watched,
        clean_ups=[task.task_id for task in tasks if isinstance(task, CleanUpValidationOperator)],
        waits=[task.task_id for task in tasks if isinstance(task, AwaitCapacityOperator)],
        torn_down=torn_down,
        turn=turn,
        end=end.task_id,
    )
    cross_downstream(tails, [end])
    cross_downstream([*tails, end], [verdict.as_teardown(on_failure_fail_dagrun=True)])
