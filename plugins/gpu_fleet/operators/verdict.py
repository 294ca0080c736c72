"""The end of a Dag run: make its state say what happened, also when its last tasks succeeded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.operators.turn import SKIPPED
from gpu_fleet.operators.validation_cleanup import STILL_PAID

#: Task states that make the run a failed one. ``upstream_failed`` and ``skipped`` follow from these and are not listed.
FAILED_STATES = frozenset({"failed"})


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


class RunVerdictOperator(BaseOperator):
    """Fails if any task of the run failed.

    Airflow takes a run's state from its leaf tasks alone, so a lifecycle that fails and is then torn down cleanly would
    end as a success. This task is the only leaf and carries the earlier failure to the run's state. So does a run that
    was ended by hand before it came to its end.

    :param watched: the task ids whose failure fails the run.
    :param clean_ups: ids of the tasks that may have found nodes that are left and cost money.
    :param nothing_left: id of the task whose success shows that they are gone.
    :param turn: id of the task that takes the cluster's turn, where it may be skipped.
    :param end: id of the task that is skipped only in a run that a person ends, whatever state they give it.
    :returns: a sentence; of a run that was skipped because the turn was taken, who holds it.
    """

    operator_extra_links = (ReportLink(),)

    def __init__(
        self,
        *,
        watched: list[str],
        clean_ups: Iterable[str] = (),
        nothing_left: str = "",
        turn: str = "",
        end: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.watched = watched
        self.clean_ups = list(clean_ups)
        self.nothing_left = nothing_left
        self.turn = turn
        self.end = end

    def execute(self, context: Any) -> str:
        from gpu_fleet.hooks.under_way import note_end

        ti = context["ti"]
        # Whatever the verdict: the run ends with it, and its DAG may follow the cluster file again.
        note_end(ti.dag_id, ti.run_id)
        answer = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])
        states = answer.get(ti.run_id, {})
        failed = failed_tasks(states, self.watched)
        if failed:
            gone = states.get(self.nothing_left) == "success"
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
        return f"none of {len(self.watched)} tasks failed"


class TeardownRequestedOperator(BaseOperator):
    """Lets the teardown phase begin if the run's param ``until`` asks for it, else skips it."""

    def execute(self, context: Any) -> str:
        until = context["params"].get("until")
        if until != "torn_down":
            raise AirflowSkipException(f"param until={until!r}: the capacity stays")
        return str(until)
