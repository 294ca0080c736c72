"""What must hold before an operator acts: each condition skips the task, fails it, or lets it act.

==================  ===============================================  ==================================================
condition           declared by                                      without it the task
==================  ===============================================  ==================================================
``SelectedPool``    operators on one pool                            is skipped
``RunIf``           one task of a DAG, by the argument ``run_if``    is skipped
``HadLock``         operators that run whatever happened before      is skipped
``Approved``        operators that carry out an approved plan        fails with the reason ``NotApproved``
``HoldsLock``       operators that change the cluster                takes the lock, or fails with ``ClusterBusy``
==================  ===============================================  ==================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.core.teardown.approval import Answer, answer_to
from gpu_fleet.operators.base import SELECT_NODE_TASK_ID, FleetOperator, Preconditions, task_states, tasks_before
from gpu_fleet.operators.locking import keep_lock, lock_tasks

_FAILED = frozenset({"failed", "upstream_failed"})


class RunIf(StrEnum):
    """A condition on the tasks directly upstream that no trigger rule of Airflow expresses; give it with ``ALL_DONE``.

    ``ALL_DONE_MIN_ONE_SUCCESS`` is skipped as soon as one upstream was (here: a pool that the run leaves out), and
    ``ONE_FAILED`` does not wait for the others.
    """

    ANY_SUCCEEDED = "any_succeeded"
    ANY_FAILED = "any_failed"

    def holds(self, states: Iterable[str]) -> bool:
        """Whether it holds for these states of task instances; ``upstream_failed`` counts as failed."""
        found = set(states)
        if self is RunIf.ANY_SUCCEEDED:
            return "success" in found
        return not found.isdisjoint(_FAILED)

    @property
    def needs_cluster(self) -> bool:
        return False

    def check(self, operator: FleetOperator, context: Mapping[str, Any]) -> None:
        upstream = sorted(operator.upstream_task_ids)
        if not self.holds(task_states(context, upstream).values()):
            word = "succeeded" if self is RunIf.ANY_SUCCEEDED else "failed"
            raise AirflowSkipException(f"none of the upstream tasks {word} ({', '.join(upstream)})")


@dataclass(frozen=True)
class SelectedPool:
    """The run's Params ``pools`` and ``node`` do not leave out the operator's pool; empty, they select all pools.

    The Param ``node`` selects the pool of that node, which the task :data:`SELECT_NODE_TASK_ID` has looked up. If a
    task upstream chooses pools (``chooses_pools``), only those under ``replace`` in its result are acted on.
    """

    needs_cluster: ClassVar[bool] = False

    def check(self, operator: FleetOperator, context: Mapping[str, Any]) -> None:
        pool = operator.node_pool
        for task_id in tasks_before(operator, lambda task: getattr(task, "chooses_pools", False)):
            chosen = context["ti"].xcom_pull(task_ids=task_id)
            if pool not in ((chosen or {}).get("replace") or {}):
                raise AirflowSkipException(f"{task_id} requests no node of pool {pool}")
        params = context["params"]
        selected = params.get("pools") or []
        if selected and pool not in selected:
            raise AirflowSkipException(f"pool {pool} is not among this run's pools: {', '.join(selected)}")
        node = params.get("node")
        if node:
            found = context["ti"].xcom_pull(task_ids=SELECT_NODE_TASK_ID)
            # Without an answer the run has failed before this task; then no pool is singled out.
            if isinstance(found, Mapping) and found.get("pool") not in (None, pool):
                raise AirflowSkipException(f"node {node} belongs to pool {found['pool']}, not to {pool}")


@dataclass(frozen=True)
class HadLock:
    """This run has held the cluster lock. If it never did, another run may be at work on the cluster.

    For operators that run whatever happened before: clean-up, rollback, publishing.
    """

    needs_cluster: ClassVar[bool] = False

    def check(self, operator: FleetOperator, context: Mapping[str, Any]) -> None:
        locks = lock_tasks(operator)
        if locks and not any(context["ti"].xcom_pull(task_ids=task_id) for task_id in locks):
            raise AirflowSkipException(f"this run never held the cluster lock ({', '.join(locks)}): nothing to do")


@dataclass(frozen=True)
class Approved:
    """A person has approved the plan that the task is about to carry out; holds if no approval is upstream.

    The approval's *state* does not count: a person may mark the task as a success.
    """

    needs_cluster: ClassVar[bool] = True

    def check(self, operator: FleetOperator, context: Mapping[str, Any]) -> None:
        ti, dag = context["ti"], operator.get_dag()
        for task_id in tasks_before(operator, lambda task: getattr(task, "asks_approval", False)):
            plan_task_id = str(dag.get_task(task_id).plan_task_id)
            answer = answer_to(ti.xcom_pull(task_ids=plan_task_id), ti.xcom_pull(task_ids=task_id))
            if answer is not Answer.APPROVED:
                said = "was answered with Reject" if answer is Answer.REJECTED else "has not been answered"
                raise PermanentError(
                    f"task {operator.task_id} carries out the plan of {plan_task_id}, but {task_id} {said} for that "
                    f"plan (a state that was set by hand is not an answer); clear {plan_task_id} and what follows it, "
                    f"then answer {task_id}",
                    reason="NotApproved",
                )


@dataclass(frozen=True)
class HoldsLock:
    """This run holds the cluster lock; it is taken again if it is free, see :func:`keep_lock`."""

    needs_cluster: ClassVar[bool] = True

    def check(self, operator: FleetOperator, context: Mapping[str, Any]) -> None:
        keep_lock(operator, context)


#: Of operators that change the cluster on the way forward.
CHANGES_CLUSTER: Preconditions = (Approved(), HoldsLock())
#: Of operators that change the cluster whatever happened before: they give back what the run has taken.
GIVES_BACK: Preconditions = (HadLock(), HoldsLock())
