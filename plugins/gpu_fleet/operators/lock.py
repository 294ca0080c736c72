"""The two tasks that take and release the cluster lock; the rules are in ``core/lock.py``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core import lock as rules
from gpu_fleet.core.errors import ClusterBusy, Conflict, GpuFleetError
from gpu_fleet.core.lock import LOCK_REF, LockState
from gpu_fleet.operators.base import FleetOperator, run_name, task_states, tasks_before, wait_started
from gpu_fleet.operators.locking import SWAPS, lock_tasks, take_lock, this_run
from gpu_fleet.operators.nodes import take_back_left_behind
from gpu_fleet.operators.preconditions import Approved
from gpu_fleet.triggers.waiting import await_gate, conclude

#: What :class:`ReleaseLockOperator` returns when the run never got as far as asking for the lock.
NEVER_ASKED = "NeverAsked"
#: XCom key under which a skipped :class:`AcquireLockOperator` leaves ``{"reason": "ClusterBusy", "message"}``.
SKIPPED = "skipped"


class AcquireLockOperator(FleetOperator):
    """Takes the cluster lock; while another live run holds it, waits and names the holder.

    A lock whose holder's run is over is taken over, if that run was this deployment's; one whose run Airflow does not
    know, only if the deployment has a name of its own (``GPU_FLEET_DEPLOYMENT`` or ``[api] base_url``). A run that
    holds the lock already keeps it. Waiting ends after the spec's ``deadlines.turn``.

    :param if_taken: ``wait``, or ``skip``: this task and all tasks that depend on it are skipped, with the reason
        ``ClusterBusy`` in the XCom ``skipped``. For runs that are scheduled again anyway. If the holder has had the
        lock for longer than the spec's ``validation.overdueAfter``, the spec's notifiers are called.
    :returns: the record: deployment, dag_id, run_id, since.
    :raises DeadlinePassed: naming the holder.
    """

    takes_lock = True
    #: After an approval without an answer, no other run is to wait for this one.
    preconditions = (Approved(),)
    ui_color = "#eef2f7"

    def __init__(self, *, if_taken: Literal["wait", "skip"] = "wait", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.if_taken = if_taken

    def act(self, context: Mapping[str, Any]) -> dict[str, str]:
        return self._acquire(context, started=wait_started(context))

    def go_on(self, context: Mapping[str, Any], event: Mapping[str, Any], started: float) -> dict[str, str]:
        """Called when the lock became free, or when it is time to ask whether the holder still runs."""
        conclude(event)
        self.prepare(context)
        return self._acquire(context, started)

    def _acquire(self, context: Mapping[str, Any], started: float) -> dict[str, str]:
        holder = take_lock(self, context)
        if holder is not None:
            return holder.to_data()
        if self.if_taken == "skip":
            found = self.kube.get(LOCK_REF)
            busy = ClusterBusy(f"the lock of cluster {self.spec.name} is held by {rules.held_by(found or {})}")
            self._notify_if_overdue(context, found, busy)
            context["ti"].xcom_push(SKIPPED, {"reason": busy.reason, "message": busy.message})
            raise AirflowSkipException(f"{busy.reason}: {busy.message}; the next run looks again")
        return self._wait(context, started)

    def _notify_if_overdue(self, context: Mapping[str, Any], found: dict[str, Any] | None, busy: ClusterBusy) -> None:
        """A run that skips is in time and misses no deadline, but nothing is validated as long as every run skips.

        Only for scheduled runs: the person who starts a run by hand looks at it.
        """
        validation, run = self.spec.validation, context.get("dag_run")
        if validation.overdue_after is None or getattr(run, "run_type", "") != "scheduled":
            return
        if rules.held_longer_than(validation.overdue_after.seconds, found, datetime.now(UTC)):
            from gpu_fleet.hooks.notifiers import tell_overdue

            message = f"Revalidation of cluster {self.spec.name} is overdue: {busy.message}, and has been for longer "
            message += f"than {validation.overdue_after.seconds / 60:g} min; nothing is validated meanwhile."
            ti, entries = context["ti"], [entry.model_dump(mode="json") for entry in validation.notify]
            tell_overdue(self.spec.name, message, (ti.dag_id, ti.run_id), entries)

    def _wait(self, context: Mapping[str, Any], started: float) -> dict[str, str]:
        from gpu_fleet.hooks.settings import Settings

        recheck_at = time.time() + Settings.from_environment().turn_recheck_s
        await_gate(
            self,
            context,
            "turn_free",
            {"recheck_at": recheck_at},
            0,
            "go_on",
            deadline=started + self.spec.deadlines.turn.seconds,
            started=started,
            kwargs={"started": started},
        )
        return self._acquire(context, started)


#: States of a task that never began.
_NEVER_BEGAN = frozenset({"upstream_failed", "skipped", "removed", "None", ""})


class ReleaseLockOperator(FleetOperator):
    """Releases the cluster lock if this run holds it; a lock of another run is left alone.

    Before that it takes back what finished runs left on nodes of the cluster, also on those of pools that are no longer
    in the spec: protection, and cordons of drains that never ended. If that fails the lock is released all the same,
    and the next run looks again.

    A run that never asked for the lock does not look: whatever kept it from asking (no credentials, no cluster) would
    only be reported a second time.

    :returns: what was found: ``Ours`` means released, :data:`NEVER_ASKED` that there was nothing to look for.
    """

    ui_color = "#eef2f7"

    def execute(self, context: Mapping[str, Any]) -> Any:
        if not self._may_hold(context):
            self.log.info("nothing to release: this run never asked for the cluster lock")
            return NEVER_ASKED
        return super().execute(context)

    def _may_hold(self, context: Mapping[str, Any]) -> bool:
        """Whether a task that takes the lock has begun, other than those whose lock an earlier task released."""
        dag = self.get_dag()
        settled: set[str] = set()
        for task_id in tasks_before(self, lambda task: isinstance(task, ReleaseLockOperator)):
            settled.update(lock_tasks(dag.get_task(task_id)))
        locks = [task_id for task_id in lock_tasks(self) if task_id not in settled]
        if not locks:
            return True
        found = set(task_states(context, locks).values())
        return not found or not found <= _NEVER_BEGAN

    def act(self, context: Mapping[str, Any]) -> str:
        me = this_run(context)
        if rules.observe(self.kube.get(LOCK_REF), me) is LockState.OURS:
            self._take_back(run_name(context))
        for _ in range(SWAPS):
            found = self.kube.get(LOCK_REF)
            lock = rules.observe(found, me)
            if lock is not LockState.OURS:
                self.log.info("nothing to release: the cluster lock is held by %s", rules.held_by(found or {}))
                return lock.value
            try:
                self.kube.replace(rules.record(None, found))
            except Conflict:
                continue
            self.log.info("released the cluster lock")
            return lock.value
        raise ClusterBusy(f"{LOCK_REF} changed {SWAPS} times while it was being released; the task will be retried")

    def _take_back(self, run: str) -> None:
        try:
            freed = take_back_left_behind(self.kube, run)
        except GpuFleetError as error:
            self.log.warning("could not look for what finished runs left on nodes: %s", error)
            return
        for name in freed:
            self.log.info("node %s: took back the protection or cordon of a run that is over", name)
