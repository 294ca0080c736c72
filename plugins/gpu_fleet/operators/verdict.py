"""The end of a Dag run: its state shows what happened, also if its last tasks succeeded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.capacity.told import climb_sentences
from gpu_fleet.core.errors import PermanentError
from gpu_fleet.core.teardown.approval import Answer, answer_to, shows_nothing_left
from gpu_fleet.operators.base import task_states
from gpu_fleet.operators.capacity.climbing import LADDER
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.operators.lock import SKIPPED
from gpu_fleet.operators.validation.cleanup import STILL_PAID

#: Task states that make the run a failed one. ``upstream_failed`` and ``skipped`` follow from these and are not listed.
FAILED_STATES = frozenset({"failed"})

#: The value of the Param ``until`` that asks for a teardown.
TORN_DOWN = "torn_down"


class RunFailed(PermanentError):
    """At least one task of the run failed, or a person ended it; the message says which."""


def failed_tasks(states: Mapping[str, Any], watched: Iterable[str]) -> list[str]:
    """The watched tasks that failed, in the order of ``watched``; a mapped task is named with its index.

    :param states: task id (mapped: ``<id>_<index>``) to state, as Airflow's ``get_task_states`` gives them for one run.
    """
    failed = []
    for task_id in watched:
        for key, state in states.items():
            index = key.removeprefix(task_id)
            if state in FAILED_STATES and (index == "" or (index.startswith("_") and index[1:].isdigit())):
                failed.append(task_id if not index else f"{task_id}[{index[1:]}]")
    return failed


@dataclass(frozen=True)
class TornDown:
    """The tasks that show that a teardown took place; their results count, not their states.

    :ivar plan: id of the task whose plan was to be approved.
    :ivar approval: id of the approval.
    :ivar leak_check: id of the task that shows that nothing is left.
    """

    plan: str
    approval: str
    leak_check: str


class RunVerdictOperator(BaseOperator):
    """Fails if any task of the run failed.

    Airflow takes a run's state from its leaf tasks alone, so a lifecycle that fails and is then torn down cleanly would
    end as a success. This task is the only leaf and passes the earlier failure on to the run's state. It also fails
    for a run that was ended by hand before its last task, and for a teardown whose tasks were marked as success or
    skipped: that needs the leak check's own result, unless its approval was answered with Reject.

    :param watched: the task ids whose failure fails the run.
    :param clean_ups: ids of the tasks that may have found leftover nodes, which cost money.
    :param torn_down: the tasks of the teardown, in a DAG that has one; it is asked for by the run's Param ``until``, or
        by any run of a DAG without that Param.
    :param waits: ids of the tasks that waited for capacity, which say if it came from a lower rung of a ladder.
    :param turn: id of the task that takes the cluster lock, in a DAG in which that task may be skipped.
    :param end: id of the task that is skipped only in a run that a person ends, whatever state they set.
    :raises RunFailed: naming the failed tasks; with reason ``NotTornDown`` if a teardown has shown nothing.
    :returns: a sentence, with what the leak check could not see; of a run that was skipped because the cluster lock was
        held, its holder.
    """

    operator_extra_links = (ReportLink(),)

    def __init__(
        self,
        *,
        watched: list[str],
        clean_ups: Iterable[str] = (),
        waits: Iterable[str] = (),
        torn_down: TornDown | None = None,
        turn: str = "",
        end: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.watched = watched
        self.clean_ups = list(clean_ups)
        self.waits = list(waits)
        self.torn_down = torn_down
        self.turn = turn
        self.end = end

    def execute(self, context: Any) -> str:
        from gpu_fleet.hooks.files.runs import note_end

        ti = context["ti"]
        try:
            verdict = self._verdict(context)
        except RunFailed:
            note_end(ti.dag_id, ti.run_id)
            raise
        # Whatever the verdict, the run ends with it, and its DAG may follow the cluster file again. Not after any other
        # error: this task is retried then, and the file may by now produce a DAG without it.
        note_end(ti.dag_id, ti.run_id)
        return verdict

    def _verdict(self, context: Any) -> str:
        ti = context["ti"]
        states = task_states(context)
        failed = failed_tasks(states, self.watched)
        if failed:
            gone = self._nothing_left(ti) is not None
            told = [] if gone else [ti.xcom_pull(task_ids=task_id, key=STILL_PAID) for task_id in self.clean_ups]
            raise RunFailed(
                f"{len(failed)} task(s) of this run failed: {', '.join(failed)}; the first one's log names the cause"
                + "".join(f"; {text}" for text in told if text)
            )
        if states.get(self.end) == "skipped":
            raise RunFailed("a person ended this run before it came to its end: it has shown nothing")
        skipped = ti.xcom_pull(task_ids=self.turn, key=SKIPPED) if self.turn else None
        if isinstance(skipped, Mapping):
            return f"{skipped.get('reason')}: {skipped.get('message')}"
        return f"none of {len(self.watched)} tasks failed{self._capacity_told(ti)}{self._teardown_told(context)}"

    def _capacity_told(self, ti: Any) -> str:
        """That capacity came on a lower rung, or is less than wanted: no failure, but not what was asked for first."""
        found = [(task_id, ti.xcom_pull(task_ids=task_id, key=LADDER)) for task_id in self.waits]
        return "".join(f"; {task_id}: {text}" for task_id, told in found for text in climb_sentences(told) if text)

    def _nothing_left(self, ti: Any) -> Mapping[str, Any] | None:
        """The result of the leak check that has shown that nothing is left."""
        if self.torn_down is None:
            return None
        report = _result(ti, self.torn_down.leak_check)
        return report if shows_nothing_left(_result(ti, self.torn_down.plan), report) else None

    def _teardown_told(self, context: Any) -> str:
        """What is to be said of the teardown, if one was asked for.

        :raises RunFailed: it has shown nothing, although none of its tasks failed.
        """
        if self.torn_down is None or not wants_teardown(context):
            return ""
        ti, tasks = context["ti"], self.torn_down
        if report := self._nothing_left(ti):
            return f"; {report.get('sentence')}"
        if answer_to(_result(ti, tasks.plan), _result(ti, tasks.approval)) is Answer.REJECTED:
            return f"; {tasks.approval} was answered with Reject: the capacity stays"
        raise RunFailed(
            f"{tasks.leak_check} has not shown that nothing is left, and {tasks.approval} was not answered with "
            "Reject: a task that was marked as success or skipped by hand has torn nothing down; clear "
            f"{tasks.leak_check} to see what is left, or {tasks.plan} and what follows it to continue",
            reason="NotTornDown",
        )


def _result(ti: Any, task_id: str) -> Any:
    return ti.xcom_pull(task_ids=task_id, key="return_value")


def wants_teardown(context: Any) -> bool:
    """Whether the run is to tear down: by its Param ``until``, and always without that Param."""
    return bool((context.get("params") or {}).get("until", TORN_DOWN) == TORN_DOWN)


class TeardownRequestedOperator(BaseOperator):
    """Starts the teardown phase if the run's Param ``until`` requests it, else skips it."""

    def execute(self, context: Any) -> str:
        until = context["params"].get("until")
        if until != TORN_DOWN:
            raise AirflowSkipException(f"param until={until!r}: the capacity stays")
        return str(until)
