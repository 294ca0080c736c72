"""Where a run's time went: its critical path, the injected waits on it, and what Airflow added.

Computed from the task instances in Airflow's database and the waits that the sandbox recorded.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

#: States of task instances that took no time.
DID_NOT_RUN = frozenset({"skipped", "upstream_failed", "removed"})
#: What Airflow may add, in seconds (the triggerer's two loops of one second each make a deferral cost 2.0-3.0 s).
ALLOWED_PER_DEFERRAL = 2.5
ALLOWED_PER_TASK = 0.4


@dataclass(frozen=True)
class TaskSpan:
    """One task instance that ran. Times in epoch seconds.

    :ivar waited: it waited for the world (deferred, or watched from its worker), so that injected waits may explain it.
    :ivar deferrals: how often it deferred.
    :ivar person: it waited for a person's answer.
    :ivar failed: it failed.
    """

    task_id: str
    started: float
    ended: float
    upstream: tuple[str, ...] = ()
    deferrals: int = 0
    waited: bool = False
    person: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Step:
    """A task on the critical path.

    :ivar gap: seconds from the end of the task before it (or of the run's start) to this task's start.
    :ivar injected: seconds of the step (gap included) in which the simulated world was busy.
    """

    span: TaskSpan
    gap: float
    injected: float

    @property
    def seconds(self) -> float:
        return self.span.ended - self.span.started

    @property
    def patience(self) -> float:
        """Seconds that the wait continued until it was certain to fail.

        A gate that fails has waited before, so this time is neither a latency of the world nor caused by Airflow. The
        cost of a deferral counts as Airflow's.
        """
        if not (self.span.waited and self.span.failed):
            return 0.0
        return max(0.0, self.seconds - self.injected - ALLOWED_PER_DEFERRAL * self.span.deferrals)


@dataclass(frozen=True)
class Timeline:
    """A run's time, split. All in seconds.

    :ivar total: from the run's start to its end.
    :ivar person: waiting for a person's answer.
    :ivar injected: injected waits on the critical path.
    :ivar patience: waiting until a failure was certain, see :attr:`Step.patience`.
    :ivar work: time of tasks on the path that did not wait: helm, API calls, the task's own process.
    :ivar airflow: the rest: hand-over between tasks, and what deferrals took beyond the injected waits.
    :ivar allowed: 2.5 s per deferral + 0.4 s per task on the path.
    """

    total: float
    steps: tuple[Step, ...] = field(default=())

    @property
    def person(self) -> float:
        return sum(step.seconds for step in self.steps if step.span.person)

    @property
    def injected(self) -> float:
        return sum(step.injected for step in self.steps if not step.span.person)

    @property
    def patience(self) -> float:
        return sum(step.patience for step in self.steps if not step.span.person)

    @property
    def work(self) -> float:
        return sum(step.seconds for step in self.steps if not step.span.waited and not step.span.person)

    @property
    def airflow(self) -> float:
        return self.total - self.person - self.injected - self.patience - self.work

    @property
    def deferrals(self) -> int:
        return sum(step.span.deferrals for step in self.steps if not step.span.person)

    @property
    def tasks(self) -> int:
        return len(self.steps)

    @property
    def allowed(self) -> float:
        return ALLOWED_PER_DEFERRAL * self.deferrals + ALLOWED_PER_TASK * self.tasks

    @property
    def ratio(self) -> float:
        """The run without the person's time and without waits for a failure, over the injected waits."""
        return (self.total - self.person - self.patience) / self.injected if self.injected else float("inf")


def critical_path(spans: Iterable[TaskSpan]) -> list[TaskSpan]:
    """From the task that ended last, back over the upstream that ended last; in order of time."""
    by_id = {span.task_id: span for span in spans}
    if not by_id:
        return []
    current: TaskSpan | None = max(by_id.values(), key=lambda span: (span.ended, span.task_id))
    path: list[TaskSpan] = []
    while current is not None:
        path.append(current)
        upstream = [by_id[task_id] for task_id in ran_before(current, by_id)]
        current = max(upstream, key=lambda span: (span.ended, span.task_id)) if upstream else None
    return path[::-1]


def ran_before(span: TaskSpan, by_id: Mapping[str, TaskSpan]) -> list[str]:
    """The direct upstreams that ran and ended before this one started."""
    return [task_id for task_id in span.upstream if task_id in by_id and by_id[task_id].ended <= span.started + 0.001]


def union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time without overlaps, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def overlap(start: float, end: float, intervals: Sequence[tuple[float, float]]) -> float:
    """Seconds of ``start``..``end`` that lie inside the (disjoint) intervals."""
    return sum(max(0.0, min(end, b) - max(start, a)) for a, b in intervals)


def timeline(
    spans: Iterable[TaskSpan], waits: Iterable[tuple[float, float]], *, started: float, ended: float
) -> Timeline:
    """
    :param waits: the injected waits, as (start, end) in epoch seconds.
    :param started: the run's start.
    :param ended: its end (epoch seconds).
    """
    busy = union(waits)
    steps: list[Step] = []
    before = started
    for span in critical_path(spans):
        injected = overlap(span.started, span.ended, busy) if span.waited else 0.0
        steps.append(Step(span, max(0.0, span.started - before), injected))
        before = span.ended
    return Timeline(total=ended - started, steps=tuple(steps))


# --- reading Airflow's database ---
def epoch(text: str | None) -> float | None:
    """Epoch seconds of a time as SQLite or the REST API gives it (UTC)."""
    if not text:
        return None
    value = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def read_spans(database: Path, dag_id: str, run_id: str) -> list[TaskSpan]:
    """The task instances of a run that ran, from Airflow's SQLite database (opened read-only)."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        rows = connection.execute(
            "SELECT task_id, start_date, end_date, state, operator FROM task_instance WHERE dag_id = ? AND run_id = ?",
            (dag_id, run_id),
        ).fetchall()
        upstream = _upstreams(connection, dag_id)
        ran = {row["task_id"] for row in rows if row["state"] not in DID_NOT_RUN and row["start_date"]}
        deferrals = _deferrals(connection, dag_id, run_id)
    finally:
        connection.close()
    spans = []
    for row in rows:
        started, ended = epoch(row["start_date"]), epoch(row["end_date"])
        if started is None or ended is None or row["task_id"] not in ran:
            continue
        person = row["operator"] == "TeardownApprovalOperator"
        count = 0 if person else deferrals.get(row["task_id"], 0)
        spans.append(
            TaskSpan(
                row["task_id"],
                started,
                ended,
                tuple(sorted(nearest_that_ran(row["task_id"], upstream, ran))),
                deferrals=count,
                waited=count > 0,
                person=person,
                failed=row["state"] == "failed",
            )
        )
    return spans


def nearest_that_ran(task_id: str, upstream: Mapping[str, Sequence[str]], ran: Collection[str]) -> set[str]:
    """The upstreams of a task; one that did not run (for example skipped) is replaced by its own upstreams."""
    found: set[str] = set()
    for above in upstream.get(task_id, ()):
        found |= {above} if above in ran else nearest_that_ran(above, upstream, ran)
    return found


def _upstreams(connection: sqlite3.Connection, dag_id: str) -> dict[str, list[str]]:
    """Task id to its direct upstreams, from the newest serialised DAG."""
    row = connection.execute(
        "SELECT data FROM serialized_dag WHERE dag_id = ? ORDER BY created_at DESC LIMIT 1", (dag_id,)
    ).fetchone()
    if row is None:
        return {}
    data: dict[str, Any] = json.loads(row["data"])
    upstreams: dict[str, list[str]] = {}
    for entry in data["dag"]["tasks"]:
        task = entry.get("__var", entry)
        for downstream in task.get("downstream_task_ids", []):
            upstreams.setdefault(downstream, []).append(task["task_id"])
    return upstreams


def _deferrals(connection: sqlite3.Connection, dag_id: str, run_id: str) -> dict[str, int]:
    """The tasks that deferred, each counted once: Airflow keeps no record of it, the package's XCom only of the last.

    So a task that deferred twice is allowed less time than it might be, never more.
    """
    rows = connection.execute(
        "SELECT task_id, value FROM xcom WHERE dag_id = ? AND run_id = ? AND key = 'waiting_for'", (dag_id, run_id)
    ).fetchall()
    return {row["task_id"]: 1 for row in rows}
