"""Takes and releases the cluster's turn; the rules are in ``core/lock.py``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core import lock as rules
from gpu_fleet.core.errors import ClusterBusy, Conflict, GpuFleetError
from gpu_fleet.core.kubernetes.kinds import NAMESPACE, ObjectRef
from gpu_fleet.core.kubernetes.names import SYSTEM_NAMESPACE
from gpu_fleet.core.lock import TURN_REF, Action, Holder, Turn
from gpu_fleet.operators.base import FleetOperator, run_name, wait_started
from gpu_fleet.triggers.waiting import await_gate, conclude

#: Attempts of one compare-and-swap; more than a handful of writers at the same instant means something else is wrong.
SWAPS = 5
#: What :class:`ReleaseTurnOperator` returns when the run did not come as far as to ask for the turn.
NEVER_ASKED = "NeverAsked"
#: XCom key under which a skipped :class:`AcquireTurnOperator` leaves ``{"reason": "ClusterBusy", "message"}``.
SKIPPED = "skipped"


def this_run(context: Mapping[str, Any]) -> Holder:
    """The current run as a holder."""
    from gpu_fleet.hooks.settings import Settings

    ti = context["ti"]
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Holder(Settings.from_environment().deployment, ti.dag_id, ti.run_id, since)


def run_state(context: Mapping[str, Any], holder: Holder) -> str | None:
    """The state of the holder's Dag run in this Airflow; ``None`` if Airflow has no such run."""
    from airflow.sdk.exceptions import AirflowRuntimeError

    try:
        state = context["ti"].get_dagrun_state(dag_id=holder.dag_id, run_id=holder.run_id)
        # Airflow gives an enumeration whose text is its name; its value is the state.
        return str(getattr(state, "value", state))
    except AirflowRuntimeError as error:
        # The status itself: the message of any other error may hold these digits, in a run id say.
        if (error.error.detail or {}).get("status_code") == 404:
            return None
        raise


def take_turn(operator: FleetOperator, context: Mapping[str, Any]) -> Holder | None:
    """Take the turn if it is free, or its holder's run is over; keep it if this run has it.

    :returns: this run as the holder; ``None`` if another live run holds the turn, which is logged.
    :raises ClusterBusy: too many others wrote the record at the same time.
    """
    me, kube, log = this_run(context), operator.kube, operator.log
    for _ in range(SWAPS):
        found = kube.get(TURN_REF)
        turn = rules.observe(found, me)
        holder = rules.read_holder(found)
        state = run_state(context, holder) if turn is Turn.HELD_HERE and holder else None
        action = rules.decide(turn, state, nameless=me.deployment == rules.NAMELESS_DEPLOYMENT)
        if action is Action.KEEP and holder:
            log.debug("this run holds the cluster's turn since %s", holder.since)
            return holder
        if action is not Action.TAKE:
            log.info("the cluster's turn is held by %s", rules.held_by(found or {}))
            return None
        if turn is Turn.HELD_HERE:
            log.warning("taking the turn over from %s: that run is %s", holder, state or "unknown to Airflow")
        if _swap(operator, found, me):
            log.info("took the cluster's turn: %s", me)
            return me
    raise ClusterBusy(f"{TURN_REF} changed {SWAPS} times while it was being taken; the task will be retried")


def _swap(operator: FleetOperator, found: dict[str, Any] | None, me: Holder) -> bool:
    record = rules.record(me, found)
    try:
        if found is None:
            _ensure_namespace(operator)
            operator.kube.create(record)
        else:
            operator.kube.replace(record)
    except Conflict as error:
        if error.reason == "NamespaceTerminating":
            raise
        operator.log.info("somebody else wrote the turn record first; looking again")
        return False
    return True


def _ensure_namespace(operator: FleetOperator) -> None:
    """With the spec's labels: others would be reported as drift until something is applied there."""
    if operator.kube.get(ObjectRef(NAMESPACE, SYSTEM_NAMESPACE)) is None:
        from gpu_fleet.operators.objects.pods import ensure_objects

        ensure_objects(operator.kube, operator.spec, "system_namespaces", {SYSTEM_NAMESPACE})


def keep_turn(operator: FleetOperator, context: Mapping[str, Any]) -> None:
    """See to it that this run has the cluster's turn before one of its tasks changes something.

    It usually has. Not so a task that a person clears after its run has released the turn: then the turn is taken again
    if it is free, and left with the run until that is over. A DAG without a task that takes the turn needs none.

    :raises ClusterBusy: another run is at work; a retry looks again.
    """
    if not operator.tasks_before(AcquireTurnOperator) or take_turn(operator, context) is not None:
        return
    holder = rules.held_by(operator.kube.get(TURN_REF) or {})
    raise ClusterBusy(
        f"task {operator.task_id} changes the cluster, whose turn is held by {holder}: let that run end, then clear "
        "this task again"
    )


class AcquireTurnOperator(FleetOperator):
    """Takes the cluster's turn; while another live run holds it, waits and names the holder.

    A turn whose holder's run is over is taken over, if that run was this deployment's; one whose run Airflow does not
    know, only if the deployment has a name of its own (``GPU_FLEET_DEPLOYMENT`` or ``[api] base_url``). Taken twice by
    the same run it is simply kept. Waiting ends after the spec's ``deadlines.turn``.

    :param if_taken: ``wait``, or ``skip``: this task and all that rests on it are skipped, with the reason
        ``ClusterBusy`` in the XCom ``skipped``. For runs that come again by themselves. If the holder has had the turn
        for longer than the spec's ``validation.overdueAfter``, the spec's notifiers are told.
    :returns: the record: deployment, dag_id, run_id, since.
    :raises DeadlinePassed: naming the holder.
    """

    #: After an approval that nobody answered, no other run is to wait for this one.
    carries_out_plan = True
    ui_color = "#eef2f7"

    def __init__(self, *, if_taken: Literal["wait", "skip"] = "wait", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.if_taken = if_taken

    def act(self, context: Mapping[str, Any]) -> dict[str, str]:
        return self._acquire(context, started=wait_started(context))

    def go_on(self, context: Mapping[str, Any], event: Mapping[str, Any], started: float) -> dict[str, str]:
        """Called when the turn became free, or when it is time to ask whether the holder still runs."""
        conclude(event)
        self.prepare(context)
        return self._acquire(context, started)

    def _acquire(self, context: Mapping[str, Any], started: float) -> dict[str, str]:
        holder = take_turn(self, context)
        if holder is not None:
            return holder.to_data()
        if self.if_taken == "skip":
            found = self.kube.get(TURN_REF)
            busy = ClusterBusy(f"the turn of cluster {self.spec.name} is held by {rules.held_by(found or {})}")
            self._tell_if_overdue(context, found, busy)
            context["ti"].xcom_push(SKIPPED, {"reason": busy.reason, "message": busy.message})
            raise AirflowSkipException(f"{busy.reason}: {busy.message}; the next run looks again")
        return self._wait(context, started)

    def _tell_if_overdue(self, context: Mapping[str, Any], found: dict[str, Any] | None, busy: ClusterBusy) -> None:
        """A run that skips is in time, and so has no deadline to miss: but nothing is validated while it has to skip.

        Only of runs that come by themselves: whoever starts one by hand looks at it.
        """
        validation, run = self.spec.validation, context.get("dag_run")
        if validation.overdue_after is None or getattr(run, "run_type", "") != "scheduled":
            return
        if rules.kept_longer_than(validation.overdue_after.seconds, found, datetime.now(UTC)):
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
_NEVER_BEGUN = frozenset({"upstream_failed", "skipped", "removed", "None", ""})


class ReleaseTurnOperator(FleetOperator):
    """Releases the cluster's turn if this run holds it; anybody else's is left alone.

    Before that it takes back what finished runs left on nodes of the cluster, also of pools that the spec does not have
    (any more): protection, and cordons of drains that never ended. That it cannot is no reason to keep the turn; the
    next run looks again.

    A run that never asked for the turn does not look: what kept it from asking (no credentials, no cluster) would only
    be told a second time.

    :returns: what was found: ``Ours`` means released, :data:`NEVER_ASKED` that there was nothing to look for.
    """

    ui_color = "#eef2f7"

    def execute(self, context: Mapping[str, Any]) -> Any:
        if not self._may_hold(context):
            self.log.info("nothing to release: this run never asked for the cluster's turn")
            return NEVER_ASKED
        return super().execute(context)

    def _may_hold(self, context: Mapping[str, Any]) -> bool:
        """Whether a task that takes the turn has begun, other than those whose turn an earlier task gave back."""
        dag = self.get_dag()
        settled: set[str] = set()
        for task_id in self.tasks_before(ReleaseTurnOperator):
            settled.update(dag.get_task(task_id).tasks_before(AcquireTurnOperator))
        turns = [task_id for task_id in self.tasks_before(AcquireTurnOperator) if task_id not in settled]
        if not turns:
            return True
        ti = context["ti"]
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=turns, run_ids=[ti.run_id]).get(ti.run_id, {})
        found = {str(getattr(state, "value", state)) for state in states.values()}
        return not found or not found <= _NEVER_BEGUN

    def act(self, context: Mapping[str, Any]) -> str:
        me = this_run(context)
        if rules.observe(self.kube.get(TURN_REF), me) is Turn.OURS:
            self._take_back(run_name(context))
        for _ in range(SWAPS):
            found = self.kube.get(TURN_REF)
            turn = rules.observe(found, me)
            if turn is not Turn.OURS:
                self.log.info("nothing to release: the cluster's turn is held by %s", rules.held_by(found or {}))
                return turn.value
            try:
                self.kube.replace(rules.record(None, found))
            except Conflict:
                continue
            self.log.info("released the cluster's turn")
            return turn.value
        raise ClusterBusy(f"{TURN_REF} changed {SWAPS} times while it was being released; the task will be retried")

    def _take_back(self, run: str) -> None:
        from gpu_fleet.operators.teardown.left_behind import take_back_left_behind

        try:
            freed = take_back_left_behind(self.kube, run)
        except GpuFleetError as error:
            self.log.warning("what finished runs left on nodes was not looked at: %s", error)
            return
        for name in freed:
            self.log.info("node %s: took back the protection or cordon of a run that is over", name)
