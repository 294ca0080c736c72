"""What the phases share: the group's ends, and where a join must look to know that everything before it is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


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
