"""What the phases share: the group's ends, where a join must look to know that everything before it is over, and how
a run ends, also by hand.

When a person marks a run failed (or success), Airflow ends what runs and skips what waits, except *teardown* tasks
(``airflow.api.common.mark_tasks``). So clean-up, the turn's release and the verdict are such tasks: probes,
placeholders, protection and turn are given back also then. What that changes, and what it does not:

- They have no setup task. With one, a teardown is not run if that failed, and a half-done protection would stay.
  Without one the rule ``all_done_setup_success``, which every teardown has, is ``all_done``.
- Airflow leaves teardowns out when it takes a run's state from the leaves. ``run_verdict`` must count, so it is one
  with ``on_failure_fail_dagrun``; a failed clean-up counts through it. Without being a teardown it would be skipped
  in a run that was marked failed, and a run whose one counted leaf is skipped ends as a *success*.
- :func:`settle` sees a teardown as what it is here: a task that is the end of its chain.

Beyond their reach are a run that ``dagrun_timeout`` ends and a machine that dies: then probes and placeholders end by
themselves (``activeDeadlineSeconds``), the turn is stale as its run is over, and the next run's clean-up removes the
rest, whichever run left it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import TriggerRule, cross_downstream

from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.verdict import RunVerdictOperator, TornDown


@dataclass(frozen=True)
class Phase:
    """A built phase.

    :ivar heads: tasks without an upstream inside the phase.
    :ivar tails: tasks that later phases wait for.
    :ivar tasks: every task of the phase, for joins and for the run's verdict.
    """

    heads: list[Any]
    tails: list[Any]
    tasks: list[Any] = field(default_factory=list)


def settle(tasks: Iterable[Any]) -> list[Any]:
    """The tasks that a join with trigger rule ``all_done`` must wait for, so that nothing of ``tasks`` still runs then.

    A task whose upstreams are several chains is ``upstream_failed`` as soon as *one* of them fails, while the others
    still run. So a join must look at the end of every chain: the leaves, and each upstream of a task that has several.
    """
    inside = {task.task_id: task for task in tasks}
    ends: dict[str, Any] = {}
    for task in inside.values():
        if not any(task_id in inside for task_id in task.downstream_task_ids):
            ends[task.task_id] = task
        if len(task.upstream_task_ids) > 1:
            ends.update({task_id: inside[task_id] for task_id in task.upstream_task_ids if task_id in inside})
    return [ends[task_id] for task_id in sorted(ends)]


def end_run(tasks: Iterable[Any], last: list[Any], *, turn: str = "", torn_down: TornDown | None = None) -> None:
    """The run's last two tasks: one that shows that the run came to its end, and the verdict.

    Of a run that is marked failed while nothing runs (its tasks are queued, or wait for a retry) Airflow keeps no
    trace but skipped tasks, and a verdict that looked for failures alone would make it a success. ``reached_end`` does
    nothing, costs no worker, and cannot be skipped in any other way. The verdict waits for ``last`` all the same:
    teardowns may still run when it has been skipped.

    :param tasks: all other tasks of the run.
    :param last: those after which nothing of them still runs, in a run that is ended by hand too.
    :param turn: see :class:`RunVerdictOperator`. :param torn_down: the same.
    """
    tasks = list(tasks)
    end = EmptyOperator(task_id="reached_end", trigger_rule=TriggerRule.ALL_DONE)
    watched = [task.task_id for task in [*tasks, end]]
    verdict = RunVerdictOperator(
        task_id="run_verdict",
        watched=watched,
        clean_ups=[task.task_id for task in tasks if isinstance(task, CleanUpValidationOperator)],
        torn_down=torn_down,
        turn=turn,
        end=end.task_id,
    )
    cross_downstream(last, [end])
    cross_downstream([*last, end], [verdict.as_teardown(on_failure_fail_dagrun=True)])
