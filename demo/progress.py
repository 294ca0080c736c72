"""Follows a Dag run over the REST API; prints phase, task, state, elapsed time, what it waits for and why."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import httpx

from demo.api import AirflowApi, ApiError
from demo.stack import Stack
from demo.timeline import epoch

FINISHED_RUN = frozenset({"success", "failed"})
SETTLED_TASK = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
#: The word for every state that gets a line; other states are not shown.
SHOWN = {
    "running": "runs",
    "deferred": "waits",
    "awaiting_input": "asks",
    "up_for_retry": "will retry",
    "success": "done",
    "failed": "FAILED",
    "skipped": "skipped",
    "upstream_failed": "not reached",
}


#: How a gate logs a change of its verdict, in the worker's and in the triggerer's part of a task's log.
_PROGRESSING = re.compile(r"gate \S+: Progressing (.+)")
#: Reasons include counted seconds and change often: print one line per task in this time.
_REASON_EVERY_S = 6.0


class Follower:
    """Prints each change of a run's tasks.

    :param on_input: called once for each try of a task that awaits a person's input, with its task id.
    :param on_tick: called at every poll, with all task instances.
    """

    def __init__(
        self,
        api: AirflowApi,
        stack: Stack,
        *,
        on_input: Callable[[str], None] | None = None,
        on_tick: Callable[[list[dict[str, Any]]], None] | None = None,
        out: TextIO = sys.stdout,
        interval: float = 1.0,
    ) -> None:
        self.api = api
        self.stack = stack
        self.on_input = on_input
        self.on_tick = on_tick
        self.out = out
        self.interval = interval
        self._seen: dict[str, str] = {}
        self._reasons: dict[str, tuple[float, str]] = {}
        self._asked: set[tuple[str, int]] = set()

    def follow(self, dag_id: str, run_id: str, timeout: float) -> dict[str, Any]:
        """Follow until the run has ended.

        :returns: the run.
        :raises TimeoutError: names the tasks that still run.
        :raises StackError: a part of the stack has died.
        """
        began = time.time()
        while True:
            self.stack.check()
            run = self.api.run(dag_id, run_id)
            tasks = self.api.tasks(dag_id, run_id)
            for task in sorted(tasks, key=lambda t: (t.get("start_date") or "9", t["task_id"])):
                self._show(dag_id, run_id, task, began)
            if self.on_tick is not None:
                self.on_tick(tasks)
            if run["state"] in FINISHED_RUN:
                return run
            if time.time() - began > timeout:
                open_tasks = [t["task_id"] for t in tasks if t["state"] in ("running", "deferred", "queued")]
                raise TimeoutError(f"{dag_id}/{run_id} still runs after {timeout:.0f} s: {', '.join(open_tasks)}")
            time.sleep(self.interval)

    def _show(self, dag_id: str, run_id: str, task: dict[str, Any], began: float) -> None:
        task_id, state = task["task_id"], task["state"] or ""
        # Per try: on a busy machine the scheduler may mistake the late end of the process that asked for a failure of
        # the one that was answered, and the next try asks again.
        question = task_id, int(task.get("try_number") or 1)
        if state == "awaiting_input" and question not in self._asked and self.on_input is not None:
            self._asked.add(question)
            self.on_input(task_id)
        changed = self._seen.get(task_id) != state
        self._seen[task_id] = state
        reason = ""
        told_at, told = self._reasons.get(task_id, (0.0, ""))
        if state == "deferred" and (changed or time.time() - told_at > _REASON_EVERY_S):
            reason = self._reason(dag_id, run_id, task)
            changed = changed or (bool(reason) and reason != told)
            self._reasons[task_id] = (time.time(), reason)
        if not changed or state not in SHOWN:
            return
        started, ended = epoch(task.get("start_date")), epoch(task.get("end_date"))
        took = f"{(ended or time.time()) - started:6.1f} s" if started else " " * 8
        phase, _, name = task_id.rpartition(".")
        text = f"{time.time() - began:6.1f}  {phase or '-':<32} {name:<24} {SHOWN[state]:<12} {took}  {reason}"
        print(text.rstrip(), file=self.out, flush=True)

    def _reason(self, dag_id: str, run_id: str, task: dict[str, Any]) -> str:
        """The newest reason in the trigger's log, which has every change; until there is one, the first reason."""
        try:
            told = self.api.log(dag_id, run_id, task["task_id"], max(1, int(task.get("try_number") or 1)))
            found = _PROGRESSING.findall(told)
            if found:
                return str(found[-1]).strip()
            value = self.api.xcom(dag_id, run_id, task["task_id"], key="waiting_for")
        except (ApiError, httpx.HTTPError):
            return ""
        return f"{value.get('reason', '')}: {value.get('message', '')}" if isinstance(value, dict) else ""
